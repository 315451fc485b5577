"""Text to token ids and back, with the tokenizer that a checkpoint carries.

One idea: the HuggingFace `tokenizers` library does the work; this class adds what files say
beside it: which ids begin, end and pad a text, and the chat template.

    tokenizer = Tokenizer.from_gguf("SmolLM2-135M-Instruct.Q4_1.gguf")
    ids = tokenizer.encode("Hello, world")
    tokenizer.decode(ids)                                     # "Hello, world"
    chat = tokenizer.render_chat([{"role": "user", "content": "Hi!"}])
    ids = tokenizer.encode(chat, add_special_tokens=False)    # the template writes its own

Needs the extra `tokenizers` (`pip install 'pz-models[tokenizers]'`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pz_models import _chat_template, _gguf_tokenizer
from pz_models._gguf_header import read_header
from pz_models.errors import CheckpointError

__all__ = ["SpecialTokens", "Tokenizer"]


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Ids with a role; None where a tokenizer has no such token.

    Attributes:
      bos: Begins a text.
      eos: Ends a text; generation stops at it.
      pad: Fills rows of a batch. Never invented: a file without one has None.
      unknown: Stands for what the vocabulary cannot spell.
    """

    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    unknown: int | None = None


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of the `tokenizers` library, its special ids and its chat template.

    Attributes:
      backend: The `tokenizers.Tokenizer`.
      special: Ids that begin, end and pad texts.
      chat_template: Jinja source that renders a conversation; None where the file has none.
    """

    backend: Any
    special: SpecialTokens = SpecialTokens()
    chat_template: str | None = None

    @classmethod
    def from_gguf(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """The tokenizer in a GGUF file's metadata.

        Raises:
          CheckpointError: The file has none, or of a kind that is not supported.
        """
        header = read_header(path)
        ids = {
            role: header.metadata.get(f"tokenizer.ggml.{key}_token_id")
            for role, key in (
                ("bos", "bos"),
                ("eos", "eos"),
                ("pad", "padding"),
                ("unknown", "unknown"),
            )
        }
        backend = _gguf_tokenizer.build(header, ids)
        return cls(backend, SpecialTokens(**ids), header.metadata.get("tokenizer.chat_template"))

    @classmethod
    def from_folder(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """The tokenizer of a HuggingFace folder (`tokenizer.json` and its config), or that file.

        Raises:
          CheckpointError: There is no readable `tokenizer.json`.
        """
        path = pathlib.Path(path)
        folder, file = (path, path / "tokenizer.json") if path.is_dir() else (path.parent, path)
        library = _gguf_tokenizer.import_tokenizers()
        try:
            backend = library.Tokenizer.from_file(str(file))
        except Exception as exc:  # the library raises bare Exception
            raise CheckpointError(f"{file}: not a readable tokenizer.json ({exc}).") from exc
        config = _read_json(folder / "tokenizer_config.json")
        template = folder / "chat_template.jinja"
        if template.exists():
            config["chat_template"] = template.read_text(encoding="utf-8")
        return cls._from_parts(backend, config)

    @classmethod
    def from_huggingface(cls, tokenizer: Any) -> Tokenizer:
        """The tokenizer inside a live transformers "fast" tokenizer.

        Raises:
          TypeError: It is a slow one, written in Python, which has none inside.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise TypeError(
                "from_huggingface needs a fast tokenizer, one with `backend_tokenizer`; received"
                f" {type(tokenizer).__name__}. Load it with AutoTokenizer.from_pretrained(...)."
            )
        roles = {"bos": "bos", "eos": "eos", "pad": "pad", "unknown": "unk"}
        ids = {role: getattr(tokenizer, f"{key}_token_id", None) for role, key in roles.items()}
        return cls(backend, SpecialTokens(**ids), getattr(tokenizer, "chat_template", None))

    @classmethod
    def _from_parts(cls, backend: Any, config: Mapping[str, Any]) -> Tokenizer:
        def id_of(key: str) -> int | None:
            token = config.get(f"{key}_token")
            token = token.get("content") if isinstance(token, dict) else token
            found: int | None = None if token is None else backend.token_to_id(token)
            return found

        special = SpecialTokens(id_of("bos"), id_of("eos"), id_of("pad"), id_of("unk"))
        template = config.get("chat_template")
        if isinstance(template, list):  # several named ones; "default" is what chat means
            template = {t["name"]: t["template"] for t in template}.get("default")
        return cls(backend, special, template)

    @property
    def vocab_size(self) -> int:
        """How many ids there are, added tokens included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`.

        Args:
          text: What to encode. Special tokens written out in it ("<|im_end|>") become their ids.
          add_special_tokens: Whether to put around it what the file says (usually a BOS).
        """
        ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids; special tokens are left out unless asked for."""
        whole = [int(i) for i in ids]
        text: str = self.backend.decode(whole, skip_special_tokens=skip_special_tokens)
        return text

    def decode_stream(
        self, ids: Iterable[int], *, skip_special_tokens: bool = True
    ) -> Iterator[str]:
        """Yields pieces of text as ids come, each as soon as it is whole characters."""
        decoders = _gguf_tokenizer.import_tokenizers().decoders
        stream = decoders.DecodeStream(skip_special_tokens=skip_special_tokens)
        for i in ids:
            piece = stream.step(self.backend, int(i))
            if piece:
                yield piece

    def token(self, token_id: int) -> str:
        """What one id reads as, spaces included; for labels of plots and tables."""
        return self.decode([token_id], skip_special_tokens=False)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Renders a conversation with the file's chat template.

        Args:
          messages: Each with "role" and "content".
          add_generation_prompt: Whether to end with the opening of the assistant's answer.
          **variables: Further variables that the template reads, such as `tools`.

        Returns:
          The text, its special tokens written out; encode it with `add_special_tokens=False`.

        Raises:
          ValueError: There is no template, or it refuses the messages.
        """
        if self.chat_template is None:
            raise ValueError(
                "render_chat: this tokenizer has no chat template; a base model continues plain"
                " text. Pass one: dataclasses.replace(tokenizer, chat_template=...)."
            )

        def spelled(token_id: int | None) -> str:
            return "" if token_id is None else str(self.backend.id_to_token(token_id))

        return _chat_template.render(
            self.chat_template,
            messages=list(messages),
            add_generation_prompt=add_generation_prompt,
            bos_token=spelled(self.special.bos),
            eos_token=spelled(self.special.eos),
            pad_token=spelled(self.special.pad),
            unk_token=spelled(self.special.unknown),
            **variables,
        )


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise CheckpointError(f"{path}: not readable as JSON ({exc}).") from exc
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(loaded).__name__}.")
    return loaded
