"""Griffe extension: Hugging Face's cross-references, [`~package.Name`], become the name in code."""

import re

import griffe


class HuggingFaceReferences(griffe.Extension):
    def on_instance(self, *, obj, **kwargs):
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"\[`(?:~[\w.]*\.)?([^`\]]+)`\]", r"`\1`", obj.docstring.value)
