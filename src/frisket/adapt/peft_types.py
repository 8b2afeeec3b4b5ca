"""What moves in PEFT's further types, and where each is described; for those without a paper in PEFT 0.21's own texts,
its package reference.
"""

from collections.abc import Mapping

from frisket.adapt.base import About

_REFERENCE = "PEFT's package reference"

ABOUT: Mapping[str, About] = {
    "BOFT": About("blocks of butterfly rotations of the output", "arXiv 2311.06243"),
    "C3A": About("kernels of block-circular convolutions", "arXiv 2407.19342"),
    "DEFT": About("a subspace that is projected away, and what is put into it", f"{_REFERENCE}: DEFT"),
    "DELORA": About("two low-rank factors of unit norm, and their strength", "arXiv 2503.18225"),
    "FOURIERFT": About("a few entries of the change's Fourier transform", "arXiv 2405.03003"),
    "GLORA": About("low-rank scales and shifts of weight and bias", f"{_REFERENCE}: GLoRA"),
    "GRALORA": About("two low-rank factors in each block of the matrix", f"{_REFERENCE}: GraLoRA"),
    "HIRA": About("two low-rank factors, multiplied into the weight entry by entry", "openreview.net TwJrTz9cRS"),
    "HRA": About("a chain of Householder reflections of the input", "arXiv 2405.17484"),
    "LOHA": About("two low-rank products, multiplied entry by entry", "arXiv 2108.06098"),
    "LOKR": About("two factors of a Kronecker product", "arXiv 2309.14859"),
    "MISS": About("one small matrix that is spread over the inputs", "arXiv 2409.15371"),
    "OFT": About("blocks of rotations of the input", "arXiv 2306.07280"),
    "PEANUT": About("a small network that maps the weight to its change", "arXiv 2410.01870"),
    "RANDLORA": About("scales of frozen random low-rank bases", "arXiv 2502.00987"),
    "ROAD": About("angles and lengths of rotations of pairs of outputs", "arXiv 2409.00119"),
    "SHIRA": About("a few entries of the weight, chosen once", f"{_REFERENCE}: SHiRA"),
    "TINYLORA": About("a tiny vector between frozen singular vectors", "arXiv 2602.04118"),
    "VBLORA": About("a bank of vectors, of which low-rank factors are composed", "arXiv 2405.15179"),
    "VERA": About("two vectors that scale frozen random factors", "arXiv 2310.11454"),
    "WAVEFT": About("a few entries of the change's wavelet transform", "arXiv 2505.12532"),
}
