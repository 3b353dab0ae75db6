# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Converts a residual checkpoint to a hyper-connected one with the same outputs, or back.

modeling-hc convert SOURCE TARGET [--num_streams 4] [--connection dynamic] [--stream_reduction mean]
modeling-hc convert SOURCE TARGET --reverse
"""

import argparse
import signal
import sys

import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from ..conversion import to_hyper_connected, to_residual
from ..hyper_connections import CONNECTIONS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a folder with safetensors weights, or the name of a model on the Hub")
    parser.add_argument("target", help="the folder to create; it must not exist")
    parser.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
    parser.add_argument("--reverse", action="store_true", help="from hyper-connected to residual, where it is exact")
    added = parser.add_argument_group("what the hyper-connected model becomes", argument_default=argparse.SUPPRESS)
    added.add_argument("--num_streams", type=int, help="number of residual streams (4)")
    added.add_argument("--connection", choices=list(CONNECTIONS), help="(dynamic)")
    added.add_argument("--no_tanh", dest="use_tanh", action="store_false", help='the paper\'s "W/O tanh" variant')
    added.add_argument("--stream_reduction", choices=["mean", "sum", "gated"], help="(mean, which is exact)")
    arguments = vars(parser.parse_args())
    if not arguments.pop("reverse"):
        convert = to_hyper_connected
    elif len(arguments) == 3:
        convert = to_residual
    else:
        parser.error("--reverse takes no option of the hyper-connected model: its config.json has them")

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as it is under nohup
            signal.signal(number, lambda *_: sys.exit("Terminated; nothing was written."))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        verified = convert(**arguments)
    except (ValueError, StrictDataclassError) as error:
        sys.exit(f"{arguments['source']} was not converted. {one_paragraph(error)}")
    except (RuntimeError, MemoryError) as error:
        streams = f" with --num_streams {arguments['num_streams']}" if "num_streams" in arguments else ""
        sys.exit(
            f"{arguments['source']} was not converted{streams}, and nothing was written: "
            f"{one_paragraph(error) or 'out of memory'}. If memory ran out, choose fewer streams or a "
            "machine with more."
        )
    except (OSError, SafetensorError) as error:
        sys.exit(
            f"Writing {arguments['target']} failed, and what was written of it is removed: {one_paragraph(error)}"
        )
    except KeyboardInterrupt:
        sys.exit("Interrupted; nothing was written.")
    print(f"{arguments['target']} is written. {verified}")


def one_paragraph(error: BaseException) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    main()
