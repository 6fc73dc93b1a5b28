"""The rows of the paper and of what it compares with, on MS-COCO: published figures, none of them run here."""

from __future__ import annotations

from typing import Any

# RA-CM3 (arXiv 2211.12561), CM3Leon (arXiv 2309.02591). Lower is better for FID, higher for
# CIDEr and accuracy.
PUBLISHED: dict[str, list[dict[str, Any]]] = {
    "fid": [
        {"model": "RA-CM3 2.7B", "value": 15.7},
        {"model": "vanilla CM3 2.7B", "value": 29.5},
        {"model": "retrieval baseline", "value": 17.97},
        {"model": "DALL-E 12B", "value": 28},
        {"model": "KNN-Diffusion", "value": 16.66},
        {"model": "Stable Diffusion", "value": 12.63},
        {"model": "GLIDE", "value": 12.24},
        {"model": "DALL-E 2", "value": 10.39},
        {"model": "Imagen", "value": 7.27},
        {"model": "Parti 20B", "value": 7.23},
        {"model": "Re-Imagen", "value": 6.88},
        {"model": "CM3Leon-7B, no documents", "value": 10.82},
        {"model": "CM3Leon-7B, 1 document", "value": 5.78},
        {"model": "CM3Leon-7B, 2 documents", "value": 4.88},
    ],
    "cider": [
        {"model": "RA-CM3 2.7B", "value": 89.1},
        {"model": "vanilla CM3 2.7B", "value": 71.9},
        {"model": "retrieval baseline", "value": 84.1},
        {"model": "DALL-E 12B", "value": 20.2},
        {"model": "minDALL-E", "value": 48},
        {"model": "X-LXMERT", "value": 55.8},
        {"model": "Parti", "value": 83.9},
        {"model": "Flamingo-3B, 4 shots", "value": 85},
        {"model": "Flamingo-80B, 4 shots", "value": 103},
    ],
    "classification": [
        {"model": "RA-CM3 2.7B, 1 shot", "value": 0.78},
        {"model": "vanilla CM3 2.7B, 1 shot", "value": 0.53},
        {"model": "RA-CM3 2.7B, 8 shots", "value": 0.90},
    ],
}
