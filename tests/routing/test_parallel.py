"""Context parallelism of diffusers: two processes, each with half of the tokens."""

from __future__ import annotations

import multiprocessing
import socket

import pytest
import torch

import rainfusion_trt
from rainfusion_trt.errors import UnsupportedError
from tests.helpers.routed_models import call_of, run, tiny


def _parallel(transformer, rank: int, **degrees) -> None:
    """What enable_parallelism does; it asks for an accelerator, of which there is none here."""
    from diffusers.hooks.context_parallel import apply_context_parallel
    from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig
    from torch.distributed.device_mesh import init_device_mesh

    context = ContextParallelConfig(**degrees)
    config = ParallelConfig(context_parallel_config=context)
    shape = (context.ring_degree, context.ulysses_degree)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("ring", "ulysses"))
    config.setup(rank, 2, torch.device("cpu"), mesh=mesh)
    for module in transformer.modules():
        processor = getattr(module, "processor", None)
        if hasattr(processor, "_parallel_config"):
            processor._parallel_config = config
    apply_context_parallel(transformer, context, transformer._cp_plan)


def _work(rank: int, port: int, results) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    try:
        model, transformer = tiny("wan2.1-1.3b")
        call = call_of(model, transformer)
        answers = {"dense": run(transformer, call)}
        routing = rainfusion_trt.enable(transformer, sparsity=0.6)
        answers["sparse"] = run(transformer, call)
        _parallel(transformer, rank, ulysses_degree=2)
        answers["parallel"] = run(transformer, call)
        answers["routed"] = routing.routed
        compiled = torch.compile(transformer, backend="eager")
        answers["compiled"] = run(compiled, call)
        routing.sparsity = 0.0
        answers["parallel dense"] = run(transformer, call)
        for site in routing.sites:
            site.processor._parallel_config.context_parallel_config.ring_degree = 2
        try:
            run(transformer, call)
        except UnsupportedError as error:
            answers["ring"] = str(error)
        results.put((rank, answers, None))
    except Exception as error:
        results.put((rank, None, repr(error)))
        raise
    finally:
        torch.distributed.destroy_process_group()


def test_ulysses_gives_what_one_device_gives():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        results = manager.Queue()
        workers = [context.Process(target=_work, args=(rank, port, results)) for rank in range(2)]
        for worker in workers:
            worker.start()
        try:
            answers = [results.get(timeout=300) for _ in workers]
        finally:
            for worker in workers:
                worker.join(60)
                if worker.is_alive():
                    worker.kill()
    for _, answer, error in answers:
        assert error is None
        assert (answer["sparse"] - answer["dense"]).abs().max() > 1e-4
        torch.testing.assert_close(answer["parallel"], answer["sparse"], atol=1e-5, rtol=0)
        torch.testing.assert_close(answer["compiled"], answer["sparse"], atol=1e-5, rtol=0)
        torch.testing.assert_close(answer["parallel dense"], answer["dense"], atol=2e-5, rtol=0)
        assert answer["routed"] == 2 and "ulysses_degree" in answer["ring"]


@pytest.mark.parametrize("name", ["cogvideox-5b", "hunyuanvideo"])
def test_text_in_the_sequence_is_refused(name):
    """Its parts come together in another order; diffusers has no plan for these either."""
    from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig

    model, transformer = tiny(name)
    call = call_of(model, transformer)
    routing = rainfusion_trt.enable(transformer, sparsity=0.5)
    config = ParallelConfig(context_parallel_config=ContextParallelConfig(ulysses_degree=2))
    for site in routing.sites:
        assert hasattr(site.processor, "_parallel_config")
        site.processor._parallel_config = config
    with pytest.raises(UnsupportedError, match=r"blocks\.0\.attn1?: context parallelism"):
        run(transformer, call)
