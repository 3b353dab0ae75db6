# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Brings files from outside docs/ into the site, so that the pages' links work there as they do in the repository.

A link such as `../results/README.md` becomes a page, or a file if it is no Markdown, under `repository/`.
"""

import re
from pathlib import Path
from posixpath import relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[([^][]*)\]\(([^)#\s:]+)([^)\s]*)\)")  # text, path, anchor


def outside(source: Path, target: str) -> Path | None:
    """Returns the path, relative to the repository, of a file outside docs/ that a page links to, or None."""
    path = (source.parent / target).resolve()
    inside = path.is_relative_to(ROOT / "docs") or not path.is_relative_to(ROOT)
    return None if inside or not path.is_file() else path.relative_to(ROOT)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files that pages link to, and those that these link to in turn."""
    pages = [Path(file.abs_src_path) for file in files.documentation_pages()]
    while pages:
        page = pages.pop()
        for _, target, _ in LINK.findall(page.read_text(encoding="utf-8")):
            path = outside(page, target)
            if path is None or files.get_file_from_path(f"repository/{path}"):
                continue
            file = File.generated(config, f"repository/{path}", abs_src_path=str(ROOT / path))
            files.append(file)
            if file.is_documentation_page():
                pages.append(ROOT / path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points links to the places that `on_files` gave their targets."""
    source = Path(page.file.abs_src_path)
    copied = not source.is_relative_to(ROOT / "docs")

    def moved(link: re.Match) -> str:
        text, target, anchor = link.groups()
        absolute = (source.parent / target).resolve()
        if path := outside(source, target):
            place = f"repository/{path}"
        elif copied and absolute.is_relative_to(ROOT / "docs"):
            place = absolute.relative_to(ROOT / "docs").as_posix()
        else:
            return text if copied and absolute.is_dir() else link[0]  # the site has no listings of folders
        return f"[{text}]({relpath(place, Path(page.file.src_uri).parent.as_posix())}{anchor})"

    return LINK.sub(moved, markdown)
