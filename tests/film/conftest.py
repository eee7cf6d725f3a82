"""Without the extra ``film`` there are only the tests that do not need it."""

from importlib.util import find_spec

if not all(find_spec(name) for name in ("cv2", "diffusers", "safetensors")):
    collect_ignore = [
        "test_film_bits.py",
        "test_film_data.py",
        "test_film_instrument.py",
        "test_film_longer.py",
        "test_film_pieces.py",
        "test_film_product.py",
        "test_film_rules.py",
        "test_film_run.py",
        "test_synthetic_heads.py",
    ]
