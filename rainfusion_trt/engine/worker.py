"""The build process: ``python -m rainfusion_trt.engine.worker``.

Reads a `BuildRequest` as JSON from standard input and writes events as JSON lines to standard
output. Builds run in a process of their own because some failures inside TensorRT end the process.
"""

from __future__ import annotations

import os
import sys
import threading

from rainfusion_trt.engine.messages import BuildRequest, Event, Failed
from rainfusion_trt.engine.network import build
from rainfusion_trt.errors import RainFusionError
from rainfusion_trt.foreign_errors import explain_other


def main() -> int:
    # TensorRT and the CUDA libraries print to standard output too: that goes to standard error.
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    lock = threading.Lock()

    def emit(event: Event) -> None:
        with lock:
            stream.write(event.model_dump_json() + "\n")
            stream.flush()

    request = BuildRequest.model_validate_json(sys.stdin.read())
    try:
        emit(build(request, emit))
    except RainFusionError as error:
        emit(Failed(text=str(error)))
        return 1
    except (OSError, MemoryError) as error:
        emit(Failed(text=explain_other(error) or repr(error)))
        return 1
    return 0


if __name__ == "__main__":
    # Unwinding TensorRT objects after a failed build can abort; nothing is left to clean up.
    code = main()
    sys.stderr.flush()
    os._exit(code)
