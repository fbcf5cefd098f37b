"""Tokenizers: CLIP's own, which comes with open_clip, or those of SigLIP and others, which `transformers` reads.

The latter are a download, or a folder with `tokenizer_config.json` and the files that it needs, so that a machine
without network can use them: `--tokenizer FOLDER`, or simply the folder of the weights file.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import BadInput

CONFIG = "tokenizer_config.json"
_FILES = ("tokenizer.json", CONFIG, "special_tokens_map.json", "tokenizer.model", "spiece.model", "vocab.txt")


def load_tokenizer(model: str, folder: str | None = None) -> Any:
    """The tokenizer of an open_clip model, from a local folder where one is given. Raises BadInput."""
    import open_clip

    if folder is not None:
        require_tokenizer_folder(folder)
    try:
        return open_clip.get_tokenizer(model) if folder is None else _from_folder(model, folder)
    except Exception as error:  # an ImportError, or whatever a download raises
        reason = " ".join(str(error).split())[:300]
        raise BadInput(
            f"the tokenizer of {model!r} cannot be had ({type(error).__name__}: {reason})",
            fix="`pip install 'dits-retrieval[siglip]'` (transformers), and be online once; or give --tokenizer "
            f"FOLDER with its {CONFIG}, or --model local-dir:FOLDER, with the model's configuration, weights and "
            "tokenizer in it",
        ) from error


def folder_for(model: str, tokenizer: str | None, pretrained: str | None) -> str | None:
    """The folder that a model's tokenizer is read from: the one given, else that of the weights file if it holds one.

    None: the tokenizer comes with open_clip, or is downloaded.
    """
    if tokenizer is not None:
        return str(Path(tokenizer).resolve())
    if pretrained is None or not Path(pretrained).is_file() or not _reads_a_folder(model):
        return None
    beside = Path(pretrained).resolve().parent
    return str(beside) if (beside / CONFIG).exists() else None


def tokenizer_digest(folder: str) -> str:
    """sha256 over the files of a tokenizer's folder, for the fingerprint."""
    digest = hashlib.sha256()
    for name in _FILES:
        path = Path(folder) / name
        if path.exists():
            digest.update(f"{name} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()


def token_lengths(tokenizer: Any, texts: Sequence[str]) -> list[int] | None:
    """How many tokens each text has, marks included, before it is cut; None for a tokenizer that does not tell."""
    from open_clip.tokenizer import SimpleTokenizer

    if not texts:
        return []
    if isinstance(tokenizer, SimpleTokenizer):
        return [len(tokenizer.encode(text)) + 2 for text in texts]
    if hasattr(tokenizer, "token_lengths"):
        return list(tokenizer.token_lengths(texts))
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is None:
        return None
    clean = getattr(tokenizer, "clean_fn", None) or _siglip_clean
    return [len(row) for row in inner([clean(text) for text in texts], truncation=False, padding=False).input_ids]


def count_cut(tokenizer: Any, texts: Sequence[str]) -> int | None:
    """How many texts are longer than the tokenizer's context, and so lose their ends; None where it does not tell."""
    context = getattr(tokenizer, "context_length", None)
    if context is None:
        return None
    long_enough = [text for text in texts if len(text.encode()) + 2 > context]  # a token is a byte or more
    lengths = token_lengths(tokenizer, long_enough)
    return None if lengths is None else sum(length > context for length in lengths)


def require_tokenizer_folder(folder: str) -> None:
    if not (Path(folder) / CONFIG).exists():
        raise BadInput(
            f"no tokenizer in {folder}",
            expected=f"{CONFIG}, and tokenizer.json or the vocabulary beside it",
            fix="download the model's tokenizer on a machine with network: "
            "`transformers.AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER)`",
        )


def _reads_a_folder(model: str) -> bool:
    """Whether the model's tokenizer is one of `transformers`, which a folder can hold."""
    import open_clip

    config = open_clip.get_model_config(model) or {}
    return bool(config.get("text_cfg", {}).get("hf_tokenizer_name"))


def _from_folder(model: str, folder: str) -> Any:
    import open_clip
    from open_clip.tokenizer import HFTokenizer

    text = (open_clip.get_model_config(model) or {}).get("text_cfg", {})
    return HFTokenizer(
        folder,
        context_length=text.get("context_length", 77),
        tokenizer_mode=text.get("tokenizer_mode"),
        **text.get("tokenizer_kwargs", {}),
    )


def _siglip_clean(text: str) -> str:
    from open_clip.tokenizer import basic_clean, canonicalize_text

    cleaned: str = canonicalize_text(basic_clean(text))
    return cleaned
