# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Converts a residual checkpoint to a hyper-connected one with the same outputs, or back.

python scripts/convert.py SOURCE TARGET [--num_streams 4] [--connection dynamic] [--stream_reduction mean]
python scripts/convert.py SOURCE TARGET --reverse
"""

import argparse
import signal
import sys

import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from modeling_hc.conversion import to_hyper_connected, to_residual


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a folder with safetensors weights, or the name of a model on the Hub")
    parser.add_argument("target", help="the folder to create; it must not exist")
    parser.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
    parser.add_argument("--reverse", action="store_true", help="from hyper-connected to residual, where it is exact")
    added = parser.add_argument_group("what the hyper-connected model becomes", argument_default=argparse.SUPPRESS)
    added.add_argument("--num_streams", type=int, help="number of residual streams (4)")
    added.add_argument("--connection", choices=["dynamic", "static"], help="(dynamic)")
    added.add_argument("--no_tanh", dest="use_tanh", action="store_false", help='the paper\'s "W/O tanh" variant')
    added.add_argument("--stream_reduction", choices=["mean", "sum"], help="(mean, which is exact)")
    arguments = vars(parser.parse_args())
    if not arguments.pop("reverse"):
        convert = to_hyper_connected
    elif len(arguments) == 3:
        convert = to_residual
    else:
        parser.error("--reverse takes no option of the hyper-connected model: its config.json has them")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Terminated; nothing was written."))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        verified = convert(**arguments)
    except (ValueError, StrictDataclassError) as error:
        sys.exit(f"{arguments['source']} was not converted. {error}")
    except (OSError, SafetensorError) as error:
        sys.exit(f"Writing {arguments['target']} failed, and what was written of it is removed: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted; nothing was written.")
    print(f"{arguments['target']} is written. {verified}")


if __name__ == "__main__":
    main()
