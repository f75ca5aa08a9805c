"""A small profile under real `dvc repro`, killed, starved of disk and robbed of its cache; afterwards compared."""
