"""A private apt root: another suite's packages, without touching this machine's lists and without root."""

import hashlib
import json
import os
import pathlib
import subprocess
import time
import urllib.parse

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
RESOLUTION_AGE_MAX_S = 24 * 3600


class RigError(Exception):
    """The rig cannot do what was asked; the message says why and, where there is one, the remedy."""


class AptRoot:
    """apt with its own lists, cache and (empty) package status under `directory`.

    With an empty status every package resolves to its whole closure, so what is unpacked runs by itself.
    """

    SUITES = ("trixie", "trixie-backports")

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.updated = False

    def resolve(self, wanted, suite=None, keep=None):
        """Returns the sorted file names of the packages that `wanted` needs, newest version of `suite`.

        `keep` filters by package name. The answer is remembered for a day; when the archive cannot be reached an
        older answer is used, with a note.
        """
        memory = self.directory / "resolved.json"
        known = json.loads(memory.read_text()) if memory.exists() else {}
        key = " ".join([suite or "", *sorted(wanted)])
        entry = known.get(key)
        if entry and time.time() - entry["time"] < RESOLUTION_AGE_MAX_S:
            files = entry["files"]
        else:
            try:
                files = self._ask(wanted, suite)
            except RigError as error:
                if not entry:
                    raise
                print(f"rig: the package archive does not answer, using the last resolution ({error})")
                files = entry["files"]
            else:
                known[key] = {"time": time.time(), "files": files}
                memory.write_text(json.dumps(known, indent=1))
        return sorted(name for name in files if keep is None or keep(name.split("_")[0]))

    def unpack(self, names, destination):
        """Downloads the packages whose file names `resolve` gave and unpacks them under `destination`."""
        archives = self.directory / "archives"
        archives.mkdir(parents=True, exist_ok=True)
        missing = [name for name in names if not (archives / name).exists()]
        if missing:
            self._update()
            versioned = []
            for name in missing:
                package, version, _ = name.split("_", 2)
                versioned.append(f"{package}={urllib.parse.unquote(version)}")
            self._apt("download", *versioned, cwd=archives)
        destination.mkdir(parents=True, exist_ok=True)
        usr_merge(destination)
        for name in names:
            path = archives / name
            if not path.exists():
                raise RigError(f"apt-get download left no {name}")
            run(["dpkg", "-x", path, destination])

    def _ask(self, wanted, suite):
        self._update()
        target = ["-t", suite] if suite else []
        # apt lists only what its own cache lacks; downloads are kept elsewhere, so the list is whole.
        text = self._apt("-qq", "install", "--print-uris", *target, *wanted)
        # One package a line: 'URI' FILE SIZE HASH
        return [line.split()[1] for line in text.splitlines() if line.startswith("'")]

    def _update(self):
        if self.updated:
            return
        uri = archive_uri()
        self.directory.mkdir(parents=True, exist_ok=True)
        for path in ("lists/partial", "cache/archives/partial", "empty"):
            (self.directory / path).mkdir(parents=True, exist_ok=True)
        (self.directory / "status").touch()
        (self.directory / "sources.list").write_text(
            "".join(f"deb [signed-by={KEYRING}] {uri} {suite} main\n" for suite in self.SUITES)
        )
        settings = {
            "Dir::Etc::sourcelist": self.directory / "sources.list",
            "Dir::Etc::sourceparts": self.directory / "empty",
            "Dir::Etc::preferences": self.directory / "empty/preferences",
            "Dir::Etc::preferencesparts": self.directory / "empty",
            "Dir::State": self.directory,
            "Dir::State::lists": self.directory / "lists",
            "Dir::State::status": self.directory / "status",
            "Dir::Cache": self.directory / "cache",
            "Debug::NoLocking": "true",
            "APT::Sandbox::User": "",
            "APT::Install-Recommends": "false",
            "APT::Architecture": "amd64",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        # A container's image often empties the system's apt cache after each run: not from here.
        hooks = ["APT::Update::Post-Invoke", "APT::Update::Post-Invoke-Success", "DPkg::Post-Invoke"]
        lines = [f"#clear {hook};\n" for hook in hooks]
        lines += [f'{name} "{value}";\n' for name, value in settings.items()]
        (self.directory / "apt.conf").write_text("".join(lines))
        self._apt("-qq", "update")
        self.updated = True

    def _apt(self, *arguments, cwd=None):
        return run(["apt-get", "-c", self.directory / "apt.conf", *arguments], cwd=cwd)


def archive_uri():
    """The archive this machine installs its own packages from."""
    release = dict(
        line.split("=", 1) for line in pathlib.Path("/etc/os-release").read_text().splitlines() if "=" in line
    )
    codename = release.get("VERSION_CODENAME", "").strip('"')
    text = run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"])
    for line in text.splitlines():
        uri, suite, component = line.split()
        if suite == codename and component == "main":
            return uri
    raise RigError(f"apt's sources name no archive for '{codename} main': the guest needs a Debian machine")


def usr_merge(root):
    """The top-level links that a merged-/usr system has and no package ships."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        link = root / name
        if not link.is_symlink():
            link.symlink_to(f"usr/{name}")


def run(command, cwd=None, environment=None):
    """Runs a command and returns its standard output; raises `RigError` with what it said if it fails."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C", **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise RigError(f"{words[0]} is not installed") from error
    if done.returncode != 0:
        raise RigError(f"{' '.join(words)}: exit {done.returncode}\n{done.stderr.strip()}")
    return done.stdout


def digest(*parts):
    """A short key over strings and files: what was built from equal parts has the same key."""
    total = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, pathlib.Path) else str(part).encode()
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:16]
