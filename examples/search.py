"""Search a few documents with a trained encoder, and print the documents' rationales.

python examples/search.py runs/demo/<time>_seed0 "What do plants live on?"
"""

import sys

from grace_exp import GraceEncoder

DOCUMENTS = [
    "Leaves turn light, water and carbon dioxide into sugar.",
    "Rivers wash salts off rocks and carry them into the sea.",
    "Yeast eats sugar and gives off the gas that lifts the dough.",
    "Shakespeare wrote Hamlet around the year 1600.",
]


def main(model: str, question: str) -> list[tuple[float, str, str]]:
    """Rank the documents.

    Args:
        model: A run folder, an export, a choice of `backbone=`, or a hub name.
        question: The search query.

    Returns:
        Cosine, document and the document's rationale, nearest first.
    """
    encoder = GraceEncoder.from_pretrained(model)
    documents = encoder.encode_document(DOCUMENTS, normalize_embeddings=True)  # float32 [documents, hidden]
    rationales = encoder.rationales
    query = encoder.encode_query(question, normalize_embeddings=True)  # float32 [hidden]
    cosines = (documents @ query).tolist()
    return sorted(zip(cosines, DOCUMENTS, rationales, strict=True), reverse=True)


if __name__ == "__main__":
    for cosine, document, rationale in main(sys.argv[1], " ".join(sys.argv[2:])):
        print(f"{cosine:+.3f}  {document}\n        {rationale[:100]}")
