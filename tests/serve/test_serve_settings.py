"""Settings: of the command line, of the examples, and what is wrong with others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from rainfusion_trt.cli import app
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.operator.settings import AttentionSettings
from rainfusion_trt.runtime.graphs import Graph
from rainfusion_trt.serve import check, cli, local, settings
from rainfusion_trt.serve.ray_app import Door, build
from rainfusion_trt.serve.settings import ServeSettings
from rainfusion_trt.serve.usual_attention import NAMES, UsualAttention
from rainfusion_trt.step_cache.ratios import MagnitudeRatios

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "serving"


def application_of(name: str) -> dict:
    found = yaml.safe_load((EXAMPLES / name).read_text(encoding="utf-8"))
    if "spec" in found:
        found = yaml.safe_load(found["spec"]["serveConfigV2"])
    (application,) = found["applications"]
    return application


@pytest.mark.parametrize("name", ["serve-config.yaml", "kuberay.yaml"])
def test_examples_are_of_this_version(name):
    application = application_of(name)
    assert application["import_path"] == f"{build.__module__}:{build.__name__}"
    given = ServeSettings.model_validate(application["args"])
    assert given.worker.gpus == 1
    check.check_names(given.worker.options, EXAMPLES / name)
    built = build(application["args"])
    names = {"door", "worker"}
    assert {d["name"] for d in application.get("deployments", [])} <= names
    assert built._bound_deployment.name == "door"


def test_the_example_fits_rays_own_schema():
    from ray.serve.schema import ServeDeploySchema

    found = yaml.safe_load((EXAMPLES / "serve-config.yaml").read_text(encoding="utf-8"))
    assert ServeDeploySchema.model_validate(found).applications[0].name == "videos"


@pytest.fixture
def started(monkeypatch):
    """What would be served."""
    calls = []
    monkeypatch.setattr(local, "serve_here", lambda given, **place: calls.append((given, place)))
    return calls


def invoke(*arguments: str):
    return CliRunner().invoke(app, ["serve", *arguments])


def test_the_command_makes_settings(started, tmp_path):
    folder = tmp_path / "kept"
    chosen = ("--queue", "7", "--preset", "fast", "--allow-host", "a.org", "--allow-host", "b")
    done = invoke("--demo", "--folder", str(folder), *chosen)
    assert done.exit_code == 0, done.output
    ((given, place),) = started
    assert place == {"host": "127.0.0.1", "port": 8000}
    assert given.worker.options == {"demo": True, "preset": "fast"}
    assert (given.limits.queued, given.worker.replicas) == (7, 1)
    assert given.hosts == ("a.org", "b")
    assert given.database == f"sqlite:///{folder / 'jobs.sqlite'}" and folder.is_dir()


def test_the_command_has_the_attention_of_run(started, tmp_path):
    """Every option of the group, so that one which `run` gets is one of the service too."""
    given = {
        "preset": "fast",
        "method": "rainfusion2",
        "alpha": 0.8,
        "sink_frames": 2,
        "last_sink_frames": 1,
        "exact_frames": ((4, 6), 8),
        "sparsity": 0.25,
        "dense_fraction": 0.5,
        "dense_layers": [0, 3],
    }
    texts = {"exact_frames": ("4:6", "8"), "dense_layers": ("0", "3")}
    words = []
    for name in NAMES:
        option = "--" + name.replace("_", "-").removesuffix("s" if name == "dense_layers" else "")
        for text in texts.get(name, (str(given[name]),)):
            words += [option, text]
    done = invoke("--demo", "--folder", str(tmp_path / "kept"), *words)
    assert done.exit_code == 0, done.output
    ((made, _),) = started
    assert made.worker.options == {"demo": True, **{name: given[name] for name in NAMES}}
    kept = ServeSettings.model_validate(made.model_dump(mode="json"))  # as Ray's processes get it
    assert UsualAttention(**{name: kept.worker.options[name] for name in NAMES}).settings == {
        **{name: given[name] for name in NAMES if name in AttentionSettings().attributes()},
        "exact_frames": ((4, 6), (8, 9)),
    }


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"last_sink_frames": 1}, "last_sink_frames=1 was asked for, but .*=0"),
        ({"preset": "fast"}, "method='piecewise' was asked for, but .*='rainfusion'"),
        ({"preset": "fast", "method": "rainfusion", "last_sink_frames": 0}, None),
    ],
)
def test_attention_is_held_against_what_an_engine_has(monkeypatch, given, words):
    account = SimpleNamespace(settings=AttentionSettings(method="rainfusion"), model="cogvideox-5b")
    graph = Graph("the engine a", account, "tensorrt")
    monkeypatch.setitem(check._GRAPHS, "engine", lambda _: graph)
    options = {"engine": "a", "model": "cogvideox-5b", **given}
    if words is None:
        check.check_options(options)
        return
    with pytest.raises(InvalidInputError, match=words):
        check.check_options(options)


def test_sparsity_of_an_onnx_file_is_refused(monkeypatch):
    account = SimpleNamespace(settings=AttentionSettings(), model="cogvideox-5b")
    monkeypatch.setitem(check._GRAPHS, "onnx", lambda _: Graph("a", account, None))
    options = {"onnx": "a", "model": "cogvideox-5b"}
    with pytest.raises(InvalidInputError, match="attention is dense on onnxruntime"):
        check.check_options({**options, "preset": "fast"})
    check.check_options({**options, "sparsity": 0.0})


def test_the_command_takes_a_file(started, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("database: sqlite:////tmp/x\ncontent: /tmp/y\nlease_s: 5\n")
    assert invoke("--settings", str(file), "--host", "0.0.0.0").exit_code == 0
    ((given, place),) = started
    assert given.lease_s == 5.0 and place["host"] == "0.0.0.0"


RATIOS = "ratios"  # in the place of a file that is there


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "either --checkpoint, or --demo"),
        (("--demo", "--checkpoint", "x"), "either --checkpoint, or --demo"),
        (("--checkpoint", "x"), "--model"),
        (("--demo", "--engine", "no"), "--engine no does not exist"),
        (("--demo", "--transformer", "x"), "the demo model has its own transformer"),
        (
            ("--checkpoint", "x", "--model", "wan2.1-14b", "--transformer", "no"),
            "transformer= names no for transformer: no such file",
        ),
        (("--demo", "--preset", "best"), "preset='best'"),
        (("--demo", "--sparsity", "1"), "sparsity"),
        (("--demo", "--last-sink-frames", "-1"), "last_sink_frames=-1"),
        (("--demo", "--exact-frames", "4-6"), "exact_frames '4-6' is neither"),
        (
            ("--demo", "--exact-frames", "4", "--method", "rainfusion"),
            "no kernel for the textural heads",
        ),
        (("--demo", "--attention-precision", "4bit"), "give one of 16bit, 8bit"),
        (("--demo", "--first-16bit", "2"), "first=2.0 must be a share"),
        (
            ("--demo", "--attention-precision", "16bit", "--last-16bit", "0.1"),
            "go with --attention-precision 8bit",
        ),
        (("--demo", "--device", "tpu"), "--device tpu"),
        (("--demo", "--device", "cpu", "--gpus", "2"), "--gpus 2"),
        (("--demo", "--gpus", "3", "--split-guidance"), "--split-guidance"),
        (("--demo", "--overlap"), "ulysses=1 has none"),
        (
            ("--demo", "--allow-host", "http://a.org"),
            "hosts.0='http://a.org' must be a text of the form",
        ),
        (("--demo", "--database", "sqlite:///x"), "error: database: sqlite:///x is relative, and"),
        (
            ("--demo", "--database", "sqlite:///x", "--allow-host", "a b"),
            "give sqlite:////path; hosts.0='a b' must be a text of the form",
        ),
        (("--demo", "--model", "nope"), "model 'nope' is unknown"),
        (("--demo", "--model", "wan2.1-14b", "--cache-ratios", RATIOS), "and the model here is"),
        (("--settings", "/nowhere.yaml"), "/nowhere.yaml"),
        (("--settings", "a.yaml", "--demo"), "--demo goes into a.yaml"),
        (("--cpu-offload", "--settings", "a.yaml"), "--cpu-offload goes into a.yaml"),
    ],
)
def test_bad_options_are_one_line(
    started, tmp_path, tmp_path_factory, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    ratios = tmp_path_factory.mktemp("ratios") / "ratios.json"
    ratios.write_text(MagnitudeRatios("wan2.1-1.3b", "S", (2.0, 1.0), None, (None, 1.0)).text())
    done = invoke(*(str(ratios) if given == RATIOS else given for given in arguments))
    assert done.exit_code == 2 and done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1 and words in done.stderr
    assert not started and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"database": "sqlite:///x"}, "sqlite:////path"),
        ({"database": "sqlite+pysqlite:///x"}, "is relative"),
        ({"database": "sqlite://"}, "is of one process alone"),
        ({"content": "x"}, "/path or a URL"),
        ({"lease_s": 0}, r"lease_s=0 must be 0\.5 or more"),
        ({"limits": {"queued": 0}}, r"limits\.queued=0 must be 1 or more"),
        ({"limits": {"quiued": 1}}, r"limits\.quiued is no field here: leave it out: see"),
        ({"hosts": ["http://a.org"]}, r"hosts\.0='http://a.org' must be a text of the form"),
        ({"doors": 2, "page": True}, "settings: page with doors: 2: "),
        (
            {"surprise": "secret"},
            "surprise is no field here: leave it out, or take one of database",
        ),
        (
            {"worker": {"gpus": "two", "cpus": -1}, "doors": 0, "attempts": None, "page": 3},
            "^attempts=None must be an integer; doors=0 must be 1 or more; page=3 must be true or "
            "false; and 2 more: see docs/serving.md$",
        ),
    ],
)
def test_bad_settings_are_refused(change, words):
    """As Ray hands them to the application, which shows its users what is raised."""
    good = {"database": "sqlite:////tmp/x", "content": "/tmp/y"}
    with pytest.raises(InvalidInputError, match=words) as error:
        build({**good, **change})
    assert str(error.value).isprintable() and "secret" not in str(error.value)


PLACES = "database: sqlite:////tmp/x\ncontent: /tmp/y\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"worker: [1,2", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not valid YAML"),
        (b"- a", "holds no settings"),
        (
            b"databse: x",
            "database is missing: give it; content is missing: give it; databse is no field here",
        ),
        (f"{PLACES}worker: {{gpus: two}}", "worker.gpus='two' must be an integer"),
        (f"{PLACES}worker: {{options: {{chekpoint: x}}}}", "options of a worker have 'chekpoint'"),
        (f"{PLACES}worker: {{options: {{cache: mag}}}}", "needs calibrated ratios"),
        (f"{PLACES}worker: {{options: {{demo: true, model: nope}}}}", "model 'nope' is unknown"),
        (f"{PLACES}worker: {{options: {{exact_frames: 4}}}}", "must be a sequence of latent frame"),
        (f"{PLACES}worker: {{options: {{attention: 1}}}}", "options of a worker have 'attention'"),
        (
            f"{PLACES}worker: {{options: {{defaults: {{stps: 3, width: wide, fps: 0}}}}}}",
            "options of a worker: defaults.width='wide' must be an integer; defaults.fps=0 must be "
            "1 or more; defaults.stps is no field here: leave it out, or take one of width, height",
        ),
        (f"{PLACES}worker: {{options: {{defaults: 3}}}}", "defaults=3 must be a mapping"),
    ],
)
def test_bad_files_of_settings_are_one_line(started, tmp_path, text, words):
    file = tmp_path / "settings.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    done = invoke("--settings", str(file))
    assert done.exit_code == 2 and done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1 and words in done.stderr and not started


def test_tokens_have_to_be_some(monkeypatch):
    # A line end is what files of secrets end with, and no header can have it.
    for bad in ("", " ", "schlüssel", "good\n", " good", "go od"):
        monkeypatch.setenv(settings.TOKEN_VARIABLE, bad)
        with pytest.raises(InvalidInputError, match=settings.TOKEN_VARIABLE):
            settings.token()
    monkeypatch.setenv(settings.TOKEN_VARIABLE, "good")
    assert settings.token() == "good"


def test_a_door_without_the_token_of_the_others_does_not_open(monkeypatch):
    given = application_of("serve-config.yaml")["args"]
    monkeypatch.delenv(settings.TOKEN_VARIABLE, raising=False)
    assert build(given)._bound_deployment.init_args[-1] is False
    monkeypatch.setenv(settings.TOKEN_VARIABLE, "secret")
    guarded = build(given)._bound_deployment.init_args[-1]
    monkeypatch.delenv(settings.TOKEN_VARIABLE)  # as on another machine
    with pytest.raises(InvalidInputError, match="set it on all"):
        Door(given, None, guarded)


def test_a_port_that_is_taken_is_one_line():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InvalidInputError, match="choose another --port"):
            local._check_address("127.0.0.1", taken.getsockname()[1])
    assert local._is_loopback("127.0.0.1") and local._is_loopback("localhost")
    assert not local._is_loopback("0.0.0.0")


def test_names_of_what_is_here_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    assert cli._absolute("checkpoint") == str(tmp_path / "checkpoint")
    assert cli._absolute("zai-org/CogVideoX-5b") == "zai-org/CogVideoX-5b"
    assert cli._absolute("s3://bucket/x") == "s3://bucket/x"


def test_a_folder_that_is_called_as_a_model_changes_no_option(started, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("wan2.1-1.3b", "fast", "easy", "checkpoint"):
        (tmp_path / name).mkdir()
    names = {"model": "wan2.1-1.3b", "preset": "fast", "cache": "easy"}
    done = invoke("--checkpoint", "checkpoint", *(f"--{n}={value}" for n, value in names.items()))
    assert done.exit_code == 0, done.output
    ((given, _),) = started
    assert given.worker.options == {"checkpoint": str(tmp_path / "checkpoint"), **names}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"database": "sqlite:////nowhere/jobs.sqlite"}, "the database does not answer"),
        ({"database": "postgresql+psycopg://x@/x?host=/nowhere"}, "the database does not answer"),
        ({"database": "mysql+none://x"}, "the database cannot be used"),
        ({"content": "nosuch://x"}, "nosuch://x cannot be used"),
    ],
)
def test_places_that_cannot_be_used_are_one_line(tmp_path, change, words):
    given = {"database": f"sqlite:///{tmp_path / 'x'}", "content": str(tmp_path), **change}
    with pytest.raises(InvalidInputError, match=words):
        local._check_places(ServeSettings.model_validate(given))


def test_the_cause_is_read_off_rays_traceback():
    told = (
        "Retrying 2 more time(s). Error:\nray::Replica.initialize()\n  File x\n"
        "OSError: [Errno 2] no file\n\nThe above exception was the direct cause:\n"
        "ray::Replica.initialize()\nrainfusion_trt.errors.InvalidInputError: checkpoint '/x' "
        "cannot be loaded\n"
    )
    assert local._cause(told) == "checkpoint '/x' cannot be loaded"
    assert local._cause("no such thing") == "no such thing"
