"""The public face: what is documented imports, lazily, from the rooms."""

import subprocess
import sys
from importlib import import_module

import pytest


ROOMS = ["", ".teachers", ".inference", ".rewards", ".evaluation", ".self_correction_dpo", ".reporting"]


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_there(room):
    face = import_module(f"correction_trl{room}")
    for name in face.__all__:
        assert getattr(face, name) is not None
        # A module of the same name would hide the function, or be hidden by it
        assert f"{face.__name__}.{name}" not in sys.modules
    assert set(face.__all__) - {"__version__"} <= set(dir(face))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        import_module(face.__name__).__getattr__("nothing")


def test_no_face_loads_torch_or_a_client():
    code = (
        "import sys\n"
        + "".join(f"import correction_trl{room}\n" for room in [*ROOMS, ".tasks"])
        + "print([name for name in ('torch', 'transformers', 'trl', 'aiohttp', 'gradio') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_what_the_house_promises():
    names = {
        "teachers": "Teacher ServerTeacher LocalTeacher PolicyTeacher StoredTeacher TeacherPrompt Correction "
        "CorrectionStore collect ask_people read_annotations",
        "inference": "Problem Trace solve LocalChat ServerChat intrinsic self_refine gated_revision proco "
        "self_checking with_corrector self_consistency best_of_n resample",
    }
    for room, promised in names.items():
        assert set(promised.split()) <= set(import_module(f"correction_trl.{room}").__all__)
