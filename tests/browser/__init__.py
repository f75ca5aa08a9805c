"""The report in a real browser; run by `make test-browser`, which installs Debian's chromium first."""
