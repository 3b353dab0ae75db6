# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Uploads a saved model to the Hugging Face Hub: weights, code, tokenizer and model card, but no training state.

modeling-hc push FOLDER NAME/REPOSITORY [--private] [--dry_run]
"""

import argparse
import json
import sys
from pathlib import Path

import yaml
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import filter_repo_objects, validate_repo_id

TRAINING_STATE = [".*", "*.pt", "*.pth", "*.bin", "*.distcp", "trainer_state.json", "events.out.*"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `save_pretrained` or `modeling-hc train` wrote")
    parser.add_argument("repo_id", help="the repository on the Hub, as NAME/REPOSITORY; created if it does not exist")
    parser.add_argument("--private", action="store_true", help="create the repository as a private one")
    parser.add_argument(
        "--dry_run", action="store_true", help="only check the folder and print what would be uploaded"
    )
    arguments = parser.parse_args()

    try:
        validate_repo_id(arguments.repo_id)
        files = files_to_upload(arguments.folder)
    except (HFValidationError, ValueError, OSError) as error:
        sys.exit(f"Nothing was uploaded. {error}")
    print(f"{arguments.folder} -> https://huggingface.co/{arguments.repo_id}")
    for file in files:
        print(f"{file.stat().st_size:18,} bytes  {file.name}")
    print(f"{sum(file.stat().st_size for file in files):18,} bytes  in all")
    card = arguments.folder / "README.md"
    if not card.is_file():
        print("Note: there is no README.md, so the model is uploaded without a card. Write one to say what it is.")
    elif license_of(card) is None:
        print("Note: the model card states no license. Add `license: ...` to the head of README.md to state one.")
    if not arguments.dry_run:
        print(f"Uploaded: {upload(arguments, files)}")


def license_of(card: Path) -> str | None:
    """Returns the license that a model card states; ends the program where the Hub could not read the card either."""
    try:
        return ModelCard.load(card).data.license
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        sys.exit(f"Nothing was uploaded: the YAML at the head of {card} cannot be read: {reason}. Mend or delete it.")


def files_to_upload(folder: Path) -> list[Path]:
    """Returns the files of a saved model, after checking that it is complete.

    Raises:
        ValueError: the folder lacks something without which nobody could load the model.
    """
    if not (folder / "config.json").is_file():
        hint = " Merge the adapter into its model first." if (folder / "adapter_config.json").is_file() else ""
        raise ValueError(
            f"{folder} is not a saved model: it has no config.json. Name a folder of `save_pretrained`.{hint}"
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    auto_map = config.get("auto_map", {})
    # Our models' save_pretrained writes a card, that of transformers does not.
    needed = {"README.md"} if config.get("model_type", "").startswith("hc_") else set()
    needed |= {f"{path.partition('.')[0]}.py" for path in auto_map.values()}
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        needed |= set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    else:
        needed.add("model.safetensors")
    missing = sorted(name for name in needed if not (folder / name).is_file())
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}. Save the model again with `save_pretrained`.")
    names = filter_repo_objects(
        (file.name for file in folder.iterdir() if file.is_file()), ignore_patterns=TRAINING_STATE
    )
    return [folder / name for name in sorted(names)]


def upload(arguments: argparse.Namespace, files: list[Path]) -> str:
    """Returns the address of the commit; ends the program where the Hub cannot be reached or refuses."""
    api = HfApi()
    try:
        api.whoami()
        api.create_repo(arguments.repo_id, private=arguments.private, exist_ok=True)
        return api.upload_folder(
            repo_id=arguments.repo_id,
            folder_path=arguments.folder,
            allow_patterns=[file.name for file in files],
            commit_message="Upload model",
        ).commit_url
    except LocalTokenNotFoundError:
        sys.exit("Nothing was uploaded: there is no access token. Run `hf auth login`, or set HF_TOKEN.")
    except OfflineModeIsEnabled:
        sys.exit("Nothing was uploaded: HF_HUB_OFFLINE is set. Unset it to reach the Hub.")
    except HfHubHTTPError as error:
        sys.exit(f"The Hub refused: {error}. Check that the token may write to {arguments.repo_id}.")
    except (HTTPError, OSError) as error:
        sys.exit(f"The Hub could not be reached: {error}")


if __name__ == "__main__":
    main()
