"""The encoder as a module of sentence-transformers, which writes rationales inside `SentenceTransformer.encode`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from sentence_transformers.base.modules.input_module import InputModule

import grace_exp
from grace_exp.data.batch import Role
from grace_exp.encoder.pretrained_folder import save_folder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from grace_exp import GraceEncoder


class GraceModule(InputModule):
    """The only module of a `SentenceTransformer`: it turns texts into the encoder's embeddings.

    It cannot be trained, because its forward has no gradient. `encode` of the `SentenceTransformer` also takes the
    encoder's `mode`, `max_tokens`, `temperature`, `seed` and `samples`.

    Attributes:
        encoder: The encoder.
    """

    forward_kwargs: ClassVar[set[str]] = {"mode", "max_tokens", "temperature", "seed", "samples"}  # type: ignore[misc]

    def __init__(self, encoder: "GraceEncoder") -> None:
        """Wrap an encoder."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.encoder = encoder
        self.model = encoder.backbone.model  # registered, so that `to` and `device` see it

    @classmethod
    def load(  # type: ignore[override]
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> "GraceModule":
        """Load an export from a folder or a repository of a hub.

        Args:
            model_name_or_path: The folder or repository.
            subfolder: Not used, because the export is at the root.
            token: Token of the hub.
            cache_folder: Folder of the hub's files; None: the hub's default.
            revision: Hub commit, tag or branch.
            local_files_only: Do not ask the hub.
            model_kwargs: Arguments of `GraceEncoder.from_pretrained`, such as `engine`, `dtype`, `device`, `cache`.
            kwargs: Not used.
        """
        from sentence_transformers.util import load_dir_path

        folder = load_dir_path(
            model_name_or_path,
            subfolder="",
            token=token,
            cache_folder=cache_folder,
            revision=revision,
            local_files_only=local_files_only,
        )
        return cls(grace_exp.GraceEncoder.from_pretrained(folder or model_name_or_path, **dict(model_kwargs or {})))

    @property
    def tokenizer(self) -> Any:  # type: ignore[override]
        """The model's tokenizer."""
        return self.encoder.tokenizer

    @property
    def max_seq_length(self) -> int:
        """Token limit of a whole prompt."""
        return self.encoder.max_seq_length

    def get_embedding_dimension(self) -> int:
        """Length of an embedding."""
        return self.encoder.get_embedding_dimension()

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Return the texts unchanged, because the encoder builds the prompts.

        Args:
            inputs: Texts.
            prompt: An instruction after the system prompt; empty: the role's own.
            kwargs: Only `task` is used: `document` or `query`.
        """
        return {"texts": list(inputs), "prompt": prompt, "task": kwargs.get("task")}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add `sentence_embedding`, float32 [texts, hidden]."""
        settings = {name: value for name, value in kwargs.items() if name in self.forward_kwargs}
        texts = features["texts"]
        features["sentence_embedding"] = self.encoder.encode(
            texts,
            prompt=features["prompt"] or None,
            role=Role.POSITIVE if features["task"] == "document" else Role.QUERY,
            batch_size=max(1, len(texts)),
            show_progress_bar=False,
            convert_to_tensor=True,
            **settings,
        )
        return features

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the encoder's folder, from which `load` makes the same module."""
        save_folder(self.encoder, output_path)


def sentence_transformer(encoder: "GraceEncoder") -> "SentenceTransformer":
    """Return a `SentenceTransformer` around an encoder, with the encoder's prompts."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(
        modules=[GraceModule(encoder)],
        prompts={"query": "", "document": "", **encoder.prompts},
        similarity_fn_name="cosine",
        truncate_dim=encoder.truncate_dim,
        device=str(encoder.device),
    )
