"""`import open_clip` works after `import pipeline`, which itself loads neither torch nor torchvision."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_open_clip_imports_after_pipeline():
    out = python(
        "import sys, pipeline\n"
        "assert not {'torch', 'torchvision', 'numpy'} & set(sys.modules)\n"
        "import open_clip, torchvision, torchvision.transforms\n"
        "from pipeline.clip import torchvision_guard as guard\n"
        "assert torchvision is sys.modules['torchvision'] and torchvision.__spec__.origin.endswith('__init__.py')\n"
        "assert not any(type(finder).__name__ == '_Watch' for finder in sys.meta_path)\n"
        "guard.ensure(); guard.watch()\n"
        "print('ViT-B-32' in open_clip.list_models())"
    )
    assert out.strip() == "True"


def test_the_one_liner_works_whatever_was_imported_before():
    out = python(
        "import torch\nimport pipeline.clip.torchvision_guard as g; g.ensure()\nimport open_clip\n"
        "print(open_clip.create_model('RN50', load_weights=False).visual.image_size)"
    )
    assert "224" in out


def test_the_doctor_says_which_state_holds():
    try:
        subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, check=True)
        alone = True
    except subprocess.CalledProcessError:
        alone = False
    out = python("from pipeline.commands.environment import _torchvision; print(_torchvision().line())")
    assert ("works by itself" in out) == alone
    assert ("works after `import pipeline`" in out) == (not alone)
