"""``python -m tif1_pipeline.cli``."""

from tif1_pipeline.cli import main

main()
