"""
Griffe extension for Hugging Face's docstrings: a cross-reference, [`~package.Name`], becomes the name in code, and a
formula MathML, which browsers draw without a script from another host.
"""

import re

import griffe
from latex2mathml.converter import convert


class HuggingFaceReferences(griffe.Extension):
    def on_instance(self, *, obj, **kwargs):
        if obj.docstring is not None:
            text = re.sub(r"\[`(?:~[\w.]*\.)?([^`\]]+)`\]", r"`\1`", obj.docstring.value)
            obj.docstring.value = re.sub(r"\$\$(.+?)\$\$", formula, text, flags=re.DOTALL)


def formula(found):
    # In one line with a block around it, so that Markdown leaves it alone
    return f"<div>{convert(' '.join(found[1].split()), display='block')}</div>"
