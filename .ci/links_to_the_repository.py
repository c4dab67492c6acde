"""MkDocs hook: links of a page to files outside of docs/ lead to the repository. They are checked to exist."""

import logging
import re
from pathlib import Path


logger = logging.getLogger("mkdocs.hooks.links_to_the_repository")


def on_page_markdown(markdown, page, config, files):
    docs = Path(config.docs_dir).resolve()
    folder = Path(page.file.abs_src_path).resolve().parent

    def to_repository(link):
        target = (folder / link[1]).resolve()
        if target.is_relative_to(docs):
            return link[0]
        if not target.exists():
            logger.warning("%s links to %s, which does not exist", page.file.src_uri, link[1])
        kind = "tree" if target.is_dir() else "blob"
        return (
            f"]({config.repo_url.rstrip('/')}/{kind}/main/{target.relative_to(docs.parent).as_posix()}{link[2] or ''})"
        )

    return re.sub(r"\]\((?!https?://|mailto:|#)([^)#\s]+)(#[^)]*)?\)", to_repository, markdown)
