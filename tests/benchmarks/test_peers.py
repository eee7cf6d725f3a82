"""benchmarks.attention.peers without a GPU: source trees, builds, what is called with what."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.attention.peers import bindings, build, flash_attention, rivals, sage_attention
from benchmarks.attention.peers.sources import (
    CUTLASS,
    FLASH_ATTENTION,
    SAGE_ATTENTION,
    Source,
    source_of,
)
from rainfusion_trt.errors import InvalidInputError, KernelError, UnsupportedError

CUTLASS_VERSION = "#define CUTLASS_MAJOR 4\n#define CUTLASS_MINOR 3\n#define CUTLASS_PATCH 4\n"
FUSED = "__global__ void a() {}\n\nvoid quant_per_block_int8_cuda(\n  torch::Tensor x) {}\n"
KERNELS = "__global__ void b() {}\ntorch::Tensor qk(torch::Tensor q) {}\n"
CORE = """
from sageattention import _fused, _qattn_sm90
SM90_ENABLED = True

def sageattn_qk_int8_pv_fp8_cuda_sm90(q, k, v, tensor_layout):
    assert tensor_layout == "HND"
    turned = v.new_empty(*v.shape[:2], v.shape[3], v.shape[2])
    _fused.transpose_pad_permute_cuda(v, turned, 1)
    scale = v.new_empty(v.shape[0], v.shape[1], v.shape[3])
    _fused.scale_fuse_quant_cuda(turned, turned, scale, v.shape[2], 448.0, 1)
    _qattn_sm90.qk_int8_sv_f8_accum_f32_fuse_v_scale_attn_inst_buf(
        q, k, turned, v, scale, scale, scale, 1, 0, 3, 0.125, 0
    )
    return v
"""


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def flash_tree(tmp_path) -> Path:
    files = dict.fromkeys(FLASH_ATTENTION.files, "")
    files |= {"hopper/__init__.py": '__version__ = "3.0.0"\n', "COMMIT": "0123abc\n"}
    return write(tmp_path / "flash", files)


@pytest.fixture
def cutlass_tree(tmp_path) -> Path:
    files = dict.fromkeys(CUTLASS.files, "")
    files |= {"include/cutlass/version.h": CUTLASS_VERSION, "COMMIT": "4567def\n"}
    return write(tmp_path / "cutlass", files)


@pytest.fixture
def sage_tree(tmp_path) -> Path:
    files = dict.fromkeys(SAGE_ATTENTION.files, "")
    files |= {"setup.py": "    version='2.2.0',\n", "COMMIT": "89ab\n"}
    files |= {SAGE_ATTENTION.files[0]: FUSED, SAGE_ATTENTION.files[1]: KERNELS}
    files |= {"sageattention/__init__.py": "", "sageattention/core.py": CORE}
    return write(tmp_path / "sage", files)


class Recorder:
    """A library whose calls are written down; or the compiler, whose commands are."""

    def __init__(self, path: object = None) -> None:
        self.calls: list[tuple[str, tuple]] = []

    def call(self, name: str, *arguments: object) -> None:
        self.calls.append((name, arguments))


@pytest.fixture
def nvcc(tmp_path, monkeypatch) -> Path:
    """An nvcc that writes its command into the library."""
    path = tmp_path / "nvcc"
    path.write_text('#!/bin/sh\nfor last; do :; done\necho "$@" > "$last"\n')
    path.chmod(0o755)
    monkeypatch.setattr(build, "find_cuda_toolkit", lambda _: SimpleNamespace(nvcc=path))
    return path


class TestSources:
    def test_version_and_commit(self, flash_tree, cutlass_tree, sage_tree):
        assert source_of(FLASH_ATTENTION, flash_tree).label == "3.0.0 (0123abc)"
        assert source_of(CUTLASS, cutlass_tree).label == "4.3.4 (4567def)"
        assert source_of(SAGE_ATTENTION, sage_tree).label == "2.2.0 (89ab)"

    def test_another_tree(self, tmp_path, flash_tree):
        with pytest.raises(InvalidInputError) as caught:
            source_of(FLASH_ATTENTION, tmp_path / "nothing")
        assert "flash_fwd_launch_template.h; tested with commit 0251105" in str(caught.value)
        (flash_tree / "hopper/__init__.py").write_text('__version__ = "2.8.3"\n')
        with pytest.raises(InvalidInputError, match="another version in hopper/__init__"):
            source_of(FLASH_ATTENTION, flash_tree)

    def test_commit_of_a_checkout(self, tmp_path, flash_tree):
        """Its own, with what was changed since; not that of a checkout around it."""
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
        for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
            subprocess.run([*git, "-C", tmp_path, *words], check=True)
        (flash_tree / "COMMIT").unlink()
        with pytest.raises(InvalidInputError, match="no git checkout: write its commit into"):
            source_of(FLASH_ATTENTION, flash_tree)
        (tmp_path / ".git").rename(flash_tree / ".git")
        subprocess.run([*git, "-C", flash_tree, "add", "."], check=True)
        subprocess.run([*git, "-C", flash_tree, "commit", "-qm", "b"], check=True)
        head = ["git", "-C", flash_tree, "rev-parse", "HEAD"]
        commit = subprocess.run(head, check=True, capture_output=True, text=True).stdout[:12]
        assert source_of(FLASH_ATTENTION, flash_tree).commit == commit
        (flash_tree / "hopper/flash.h").write_text("// changed")
        assert source_of(FLASH_ATTENTION, flash_tree).commit == f"{commit}-dirty"


class TestBuild:
    def test_once_for_every_state(self, tmp_path, nvcc):
        one = build.Library("a", "round_heads.cu", ("-DA",), (tmp_path,), "state")
        paths = build.build([one], tmp_path / "out")
        command = paths["a"].read_text()
        assert "-DA" in command and f"-I{tmp_path}" in command and "sm_90a" in command
        paths["a"].write_text("mine")
        assert build.build([one], tmp_path / "out") == paths
        assert paths["a"].read_text() == "mine"
        other = build.Library("a", "round_heads.cu", ("-DA",), (tmp_path,), "changed")
        assert build.build([other], tmp_path / "out")["a"] != paths["a"]
        assert not list((tmp_path / "out").glob("*.part"))

    def test_a_failure_is_one_line(self, tmp_path, nvcc):
        nvcc.write_text("#!/bin/sh\necho start; echo 'x.h(3): error: no such thing'; exit 1\n")
        library = build.Library("a", "round_heads.cu", tested="commit 1")
        with pytest.raises(InvalidInputError) as caught:
            build.build([library], tmp_path)
        (log,) = tmp_path.glob("*.log")
        assert str(caught.value) == (
            f"round_heads.cu does not compile (log: {log}): x.h(3): error: no such thing; "
            "tested with commit 1"
        )
        assert not list(tmp_path.glob("*.so"))

    def test_what_is_compiled(self, tmp_path, nvcc, flash_tree, cutlass_tree, sage_tree):
        """FlashAttention's kernels of each head size in both elements, Sage's, and the rounding."""
        trees = rivals.Trees(flash_tree, cutlass_tree, sage_tree, tmp_path / "out")
        paths = rivals.compiled(trees, [(128, 119056), (64, 17776)]).paths
        assert sorted(paths) == [
            "flash_attention_3_bfloat16_t_128_1",
            "flash_attention_3_bfloat16_t_64_1",
            "flash_attention_3_float_e4m3_t_128_1",
            "flash_attention_3_float_e4m3_t_64_1",
            "round_heads",
            "sage_attention",
        ]
        command = paths["flash_attention_3_float_e4m3_t_128_1"].read_text()
        assert "-DPEER_HEAD_SIZE=128 -DPEER_CLUSTER=1" in command
        assert "-DPEER_ELEMENT=cutlass::float_e4m3_t" in command
        assert f"-I{flash_tree}/hopper -I{cutlass_tree}/include" in command
        headers = tmp_path / "out" / "sage_attention-headers"
        assert f"-I{headers} -I{sage_tree}/csrc/qattn" in paths["sage_attention"].read_text()
        assert (headers / "sage_kernels.cuh").read_text() == "__global__ void b() {}\n"
        assert (headers / "sage_quantisers.cuh").read_text() == "__global__ void a() {}\n\n"

    def test_a_file_that_cannot_be_cut(self, tmp_path, nvcc, sage_tree):
        (sage_tree / SAGE_ATTENTION.files[0]).write_text("void other() {}")
        with pytest.raises(InvalidInputError, match=r"no line `void quant_per_block.*fused\.cu"):
            rivals.compiled(rivals.Trees(sage_attention=sage_tree, build=tmp_path), [(64, 100)])

    def test_refused_before_work(self, flash_tree):
        with pytest.raises(InvalidInputError, match="needed together"):
            rivals.Trees(flash_attention=flash_tree)
        with pytest.raises(UnsupportedError, match="head size 96"):
            rivals.compiled(rivals.Trees(), [(64, 100), (96, 100)])

    def test_nothing_given_is_no_peer(self):
        assert rivals.peers_of(rivals.Trees(), [(64, 100)]) == []


def test_kernels_are_those_of_its_own_dispatch():
    """Blocks share keys in 16 bits at D = 128 where there is an even number of them."""
    bf16, e4m3 = torch.bfloat16, torch.float8_e4m3fn
    kernels = [
        flash_attention.kernel_of(*case)
        for case in ((128, 256, bf16), (128, 257, bf16), (128, 256, e4m3), (64, 256, bf16))
    ]
    assert [kernel.cluster for kernel in kernels] == [2, 1, 1, 1]
    assert [kernel.element for kernel in kernels] == ["bfloat16_t"] * 2 + [
        "float_e4m3_t",
        "bfloat16_t",
    ]


def test_descriptions_of_tensors():
    x = torch.empty(2, 5, 3, 8).transpose(1, 2)
    (described,) = bindings.described(x)
    strides = (described.batch_stride, described.head_stride, described.row_stride)
    assert described.data == x.data_ptr() and strides == (120, 8, 24)
    with pytest.raises(ValueError, match="last of four"):
        bindings.described(x.transpose(2, 3))


def test_an_error_of_cuda_is_raised():
    library = bindings.PeerLibrary.__new__(bindings.PeerLibrary)
    library._library = SimpleNamespace(good=lambda x: 0, bad=lambda x: 700)
    library.call("good", 1)
    with pytest.raises(KernelError, match="bad: CUDA error 700"):
        library.call("bad", 1)


class TestFlashAttention:
    @pytest.fixture
    def flash(self, monkeypatch):
        """With libraries that write down their calls."""
        opened: dict[str, Recorder] = {}
        properties = SimpleNamespace(multi_processor_count=132)
        monkeypatch.setattr(
            flash_attention, "PeerLibrary", lambda p: opened.setdefault(p, Recorder())
        )
        monkeypatch.setattr(flash_attention, "stream_of", lambda x: None)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        names = [
            flash_attention.kernel_of(64, 70, dtype).name
            for dtype in (torch.bfloat16, torch.float8_e4m3fn)
        ]
        paths = {name: name for name in (*names, "round_heads")}
        return flash_attention.FlashAttention3(paths), opened

    def test_both_precisions_and_what_is_timed(self, flash):
        """16 bits without scales; 8 bits rounded in the call, or before what is timed."""
        attention, opened = flash
        q, k, v = torch.randn(3, 2, 3, 70, 64, dtype=torch.bfloat16)
        sixteen, eight, before = rivals.flash_peers(attention, "3.0.0 (a)")
        assert {p.version for p in (sixteen, eight, before)} == {"FlashAttention 3.0.0 (a)"}
        out = sixteen.run_of(q, k, v)()
        assert out.shape == q.shape and out.dtype == torch.bfloat16
        ((name, arguments),) = opened["flash_attention_3_bfloat16_t_64_1"].calls
        assert name == "peer_forward"
        assert [x.data for x in arguments[0]] == [x.data_ptr() for x in (q, k, v, out)]
        assert list(arguments[1]) == [None] * 3
        assert arguments[3:7] == (2, 3, 70, 70)
        assert arguments[7].value == 0.125 and arguments[8] == 132
        eight.run_of(q, k, v)()
        assert len(opened["round_heads"].calls) == 3
        run = before.run_of(q, k, v)
        assert len(opened["round_heads"].calls) == 6
        run()
        assert len(opened["round_heads"].calls) == 6
        for _, arguments in opened["flash_attention_3_float_e4m3_t_64_1"].calls:
            assert all(arguments[1]) and arguments[0][3].row_stride == 64


class TestSageAttention:
    @pytest.fixture
    def library(self, monkeypatch):
        library = Recorder()
        monkeypatch.setattr(sage_attention, "PeerLibrary", lambda path: library)
        monkeypatch.setattr(sage_attention, "stream_of", lambda x: None)
        monkeypatch.setattr(sage_attention.ctypes, "CDLL", lambda name, mode: None)
        names = ("sageattention", "sageattention.core")
        for name in (*names, "sageattention._fused", "sageattention._qattn_sm90"):
            monkeypatch.setitem(sys.modules, name, None)  # so that they are taken away again
            del sys.modules[name]
        return library

    def test_its_own_python_calls_our_modules(self, library, sage_tree):
        source = source_of(SAGE_ATTENTION, sage_tree)
        attend = sage_attention.sage_attention(source, {"sage_attention": Path("x.so")})
        q, k, v = torch.randn(3, 1, 2, 192, 64, dtype=torch.bfloat16)
        attend(q, k, v)
        assert [name for name, _ in library.calls] == [
            "peer_transpose",
            "peer_round_rows",
            "peer_attend",
        ]
        transpose, rounding, attention = (arguments for _, arguments in library.calls)
        assert transpose[1:5] == (1, 2, 192, 64)
        assert rounding[2:6] == (1, 2, 192, 64) and rounding[6].value == 448
        assert attention[2:8] == (1, 2, 192, 192, 192, 64) and attention[8].value == 0.125
        assert str(sage_tree) not in sys.path
        with pytest.raises(InvalidInputError, match="imported already"):
            sage_attention.sage_attention(source, {"sage_attention": Path("x.so")})

    def test_what_is_not_built_is_refused(self, library):
        functions = sage_attention._modules(library)
        attend = functions["_qattn_sm90"]["qk_int8_sv_f8_accum_f32_fuse_v_scale_attn_inst_buf"]
        x = torch.empty(1, 1, 64, 64, dtype=torch.bfloat16)
        with pytest.raises(ValueError, match="only dense"):
            attend(x, x, x, x, x, x, x, 1, 1, 3, 1.0, 0)
        with pytest.raises(ValueError, match="layout 0"):
            functions["_fused"]["transpose_pad_permute_cuda"](x, x, 0)
        assert not library.calls

    def test_kernels_that_do_not_import(self, library, sage_tree):
        (sage_tree / "sageattention/core.py").write_text("SM90_ENABLED = False\n")
        source: Source = source_of(SAGE_ATTENTION, sage_tree)
        with pytest.raises(InvalidInputError, match="do not import; tested with"):
            sage_attention.sage_attention(source, {"sage_attention": Path("x.so")})
