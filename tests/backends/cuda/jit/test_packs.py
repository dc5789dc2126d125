"""Kernel packs: building, installing, and packs made to do harm."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from bitsanywhere.backends.cuda.jit import packs
from bitsanywhere.backends.cuda.jit.elf import architecture
from bitsanywhere.backends.cuda.jit.pack_builder import build, supported
from bitsanywhere.backends.cuda.jit.packs import InstalledPacks, Manifest, PackedKernel, install
from bitsanywhere.errors import CacheError, PackError

DIGEST = "5a" * 32


@pytest.fixture
def pack(tmp_path, cubin):
    """A pack of one made-up kernel; returns (folder, its manifest as JSON, write it back)."""
    folder = tmp_path / "pack"
    (folder / "sm_87").mkdir(parents=True)
    content = cubin(87)
    (folder / "sm_87" / "k-1.cubin").write_bytes(content)
    kernel = PackedKernel(
        name="k",
        digest=DIGEST,
        arch="sm_87",
        file="sm_87/k-1.cubin",
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        parameters="<qi",
    )
    manifest = json.loads(Manifest.of("12.6", (kernel,)).to_json())

    def write(changed):
        (folder / "manifest.json").write_text(json.dumps(changed))

    write(manifest)
    return folder, manifest, write


@pytest.fixture
def installed(tmp_path):
    return tmp_path / "installed"


def nothing_is_installed(folder):
    return not folder.exists() or list(folder.iterdir()) == []


def test_a_built_pack_installs_and_is_found(tmp_path, installed, saxpy, fill, newest_nvrtc):
    asked = []

    def sources(target):
        asked.append(target.name)
        return [saxpy, fill, saxpy]

    manifest = build(["sm_87", "sm_75"], tmp_path / "out", sources, newest_nvrtc, False)
    assert manifest.archs == ("sm_75", "sm_87")
    assert asked == ["orin-nano", "agx-orin", "t4"]
    assert len(manifest.kernels) == 4
    assert manifest == Manifest.read(tmp_path / "out")
    place = install(tmp_path / "out", installed)
    found = InstalledPacks(installed)
    assert found.manifests == {place: manifest}
    assert set(found.archs(saxpy.digest())) == {"sm_75", "sm_87"}
    image = found.image(fill.digest(), "sm_87")
    assert (image.entry, image.arch, image.parameters) == ("fill", "sm_87", "<16sB1xhid")
    assert architecture(image.data) == 87
    assert found.archs("0" * 64) == ()
    # Again: nothing changes, nothing is left behind.
    assert install(tmp_path / "out", installed) == place
    assert list(installed.iterdir()) == [place]


def test_all_is_what_nvrtc_knows_from_sm_75_on(newest_nvrtc, nvrtc_12_6):
    assert supported(nvrtc_12_6) == ("sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90")
    assert len(supported(newest_nvrtc)) >= 6


def test_building_refuses_unknown_architectures_and_used_folders(tmp_path, saxpy, nvrtc_12_6):
    with pytest.raises(PackError, match="sm_121"):
        build(["sm_87", "sm_121"], tmp_path / "out", lambda t: [saxpy], nvrtc_12_6, False)
    assert not (tmp_path / "out").exists()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(PackError, match="exists already"):
        build(["sm_87"], tmp_path / "used", lambda t: [saxpy], nvrtc_12_6, False)


def test_only_listed_files_are_copied(pack, installed):
    folder, _, _ = pack
    (folder / "run_me.py").write_text("raise SystemExit('executed')")
    (folder / "sm_87" / "extra.cubin").write_bytes(b"unlisted")
    place = install(folder, installed)
    copied = {str(p.relative_to(place)) for p in place.rglob("*") if p.is_file()}
    assert copied == {"manifest.json", "sm_87/k-1.cubin"}


ESCAPES = [
    "../sm_87/k.cubin",
    "/etc/passwd",
    "sm_87/../../k.cubin",
    "sm_87/../k.cubin",
    "sm_87\\k.cubin",
    "sm_87/k.cubin\n",
    "sm_87//k.cubin",
    "sm_87/.cubin",
    "sm_86/k-1.cubin",
    "sm_87/k.cubin\x00",
    "k-1.cubin",
]


@pytest.mark.parametrize("file", ESCAPES)
def test_paths_do_not_escape(pack, installed, file):
    folder, manifest, write = pack
    manifest["kernels"][0]["file"] = file
    write(manifest)
    with pytest.raises(PackError):
        install(folder, installed)
    assert nothing_is_installed(installed)


WRONG_FIELDS = [
    ("name", "k; rm -rf"),
    ("name", 7),
    ("digest", "short"),
    ("digest", DIGEST.upper().replace("5A", "5B")),
    ("arch", "sm_87/.."),
    ("arch", "compute_87"),
    ("sha256", "0" * 64),
    ("sha256", None),
    ("bytes", 10**12),
    ("bytes", -1),
    ("bytes", True),
    ("bytes", 67),
    ("bytes", 69),
    ("bytes", "68"),
    ("parameters", "<P"),
    ("parameters", "<999999s"),
    ("parameters", ["<q"]),
    ("extra", "field"),
]


@pytest.mark.parametrize(("field", "value"), WRONG_FIELDS)
def test_wrong_fields_are_refused(pack, installed, field, value):
    folder, manifest, write = pack
    manifest["kernels"][0][field] = value
    write(manifest)
    with pytest.raises(PackError):
        install(folder, installed)
    assert nothing_is_installed(installed)


@pytest.mark.parametrize("field", [*PackedKernel.__dataclass_fields__])
def test_missing_fields_are_refused(pack, installed, field):
    folder, manifest, write = pack
    del manifest["kernels"][0][field]
    write(manifest)
    with pytest.raises(PackError):
        install(folder, installed)


MANIFESTS = [
    "",
    "[]",
    "null",
    "{",
    '{"format": 2}',
    '{"format": 1, "nvrtc": "12.6", "source": "", "kernels": []}',
    '{"format": 1, "nvrtc": "12.6", "source": "", "kernels": [1]}',
    '{"format": 1, "nvrtc": "x", "source": "", "kernels": [{}]}',
    "[" * 100_000,
]


@pytest.mark.parametrize("text", MANIFESTS)
def test_malformed_manifests_are_refused(pack, installed, text):
    folder, _, _ = pack
    (folder / "manifest.json").write_text(text)
    with pytest.raises(PackError):
        install(folder, installed)


@pytest.mark.parametrize("change", ["nvrtc", "source", "kernels", "more"])
def test_manifest_fields_are_all_needed_and_no_others_allowed(pack, installed, change):
    folder, manifest, write = pack
    if change == "more":
        manifest["more"] = 1
    else:
        del manifest[change]
    write(manifest)
    with pytest.raises(PackError):
        install(folder, installed)


def test_the_source_hash_must_match(pack, installed):
    folder, manifest, write = pack
    manifest["source"] = "0" * 64
    write(manifest)
    with pytest.raises(PackError, match="source hash"):
        install(folder, installed)


def test_a_kernel_listed_twice_is_refused(pack, installed):
    folder, manifest, write = pack
    manifest["kernels"] *= 2
    write(manifest)
    with pytest.raises(PackError, match="twice"):
        install(folder, installed)


def test_a_giant_manifest_is_not_read(pack, installed, monkeypatch):
    folder, _, _ = pack
    monkeypatch.setattr(packs, "_MOST_MANIFEST_BYTES", 50)
    with pytest.raises(PackError, match="larger"):
        install(folder, installed)


@pytest.mark.parametrize("damage", ["flip", "truncate", "grow", "remove"])
def test_changed_machine_code_is_refused(pack, installed, damage):
    folder, _, _ = pack
    path = folder / "sm_87" / "k-1.cubin"
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        content[-1] ^= damage == "flip"
        path.write_bytes(
            content[:-1] if damage == "truncate" else content + b"x" * (damage == "grow")
        )
    with pytest.raises(PackError):
        install(folder, installed)
    assert nothing_is_installed(installed)


@pytest.mark.parametrize("arch", [86, 88, 0])
def test_machine_code_for_another_architecture_is_refused(pack, installed, cubin, arch):
    folder, manifest, write = pack
    content = cubin(arch)
    (folder / "sm_87" / "k-1.cubin").write_bytes(content)
    manifest["kernels"][0]["sha256"] = hashlib.sha256(content).hexdigest()
    write(manifest)
    with pytest.raises(PackError, match="not sm_87"):
        install(folder, installed)


def test_links_are_not_followed(pack, installed, tmp_path):
    folder, _, _ = pack
    path = folder / "sm_87" / "k-1.cubin"
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(PackError, match="cannot be read"):
        install(folder, installed)
    path.unlink()
    (tmp_path / "other").mkdir()
    (tmp_path / "outside").rename(tmp_path / "other" / "k-1.cubin")
    (folder / "sm_87").rmdir()
    (folder / "sm_87").symlink_to(tmp_path / "other")
    with pytest.raises(PackError, match="link"):
        install(folder, installed)


def test_an_installed_file_is_checked_again_when_loaded(pack, installed):
    folder, _, _ = pack
    place = install(folder, installed)
    found = InstalledPacks(installed)
    assert found.image(DIGEST, "sm_87").parameters == "<qi"
    (place / "sm_87" / "k-1.cubin").write_bytes(b"\x7fELF" + bytes(64))
    with pytest.raises(PackError, match="not the file"):
        found.image(DIGEST, "sm_87")
    with pytest.raises(PackError, match="sm_86"):
        found.image(DIGEST, "sm_86")


def test_one_bad_pack_does_not_hide_the_others(pack, installed):
    folder, _, _ = pack
    place = install(folder, installed)
    (installed / ("0" * 16)).mkdir()
    (installed / ".install-abandoned").mkdir()
    found = InstalledPacks(installed)
    assert list(found.manifests) == [place]
    assert len(found.problems) == 1
    assert found.archs(DIGEST) == ("sm_87",)


def test_a_folder_that_others_may_write_is_refused(pack, installed):
    folder, _, _ = pack
    installed.mkdir()
    installed.chmod(0o777)
    with pytest.raises(CacheError, match="chmod"):
        install(folder, installed)
    with pytest.raises(CacheError, match="chmod"):
        _ = InstalledPacks(installed).manifests


def test_a_failed_installation_leaves_nothing(pack, installed, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(PackError, match="No space"):
        install(pack[0], installed)
    assert nothing_is_installed(installed)
