import collections
import urllib.error

import pytest
import safetensors.torch
import torch
import torchvision

from pipeline.model.backbone import build
from shards.errors import InputError


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_arguments, **_keywords):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", refuse)


@pytest.fixture
def weights():
    torch.manual_seed(11)
    return build("resnet18", num_classes=5, heads="none").state_dict()


def saved(tmp_path, value, name="start.pt"):
    path = tmp_path / name
    torch.save(value, path)
    return str(path)


def refused(**arguments):
    with pytest.raises(InputError) as caught:
        build(**{"name": "resnet18", "num_classes": 5, "heads": "none", **arguments})
    message = str(caught.value)
    assert "\n" not in message
    assert "pretrained" in message
    return message


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "module", "both"])
def test_files_and_their_wrappers(tmp_path, weights, wrap):
    prefixed = {f"module.{key}": value for key, value in weights.items()}
    value = {
        "plain": weights,
        "state_dict": {"state_dict": weights, "epoch": 3},
        "model": {"model": weights},
        "module": prefixed,
        "both": {"model": {"state_dict": prefixed}},
    }[wrap]
    net = build("resnet18", num_classes=5, heads="light", pretrained=saved(tmp_path, value))
    state = net.state_dict()
    assert all(torch.equal(state[key], weights[key]) for key in weights)


def test_safetensors(tmp_path, weights):
    path = tmp_path / "start.safetensors"
    safetensors.torch.save_file(weights, path)
    state = build("resnet18", num_classes=5, heads="none", pretrained=str(path)).state_dict()
    assert all(torch.equal(state[key], weights[key]) for key in weights)


def test_classifier_of_other_classes_or_none_stays_fresh(tmp_path, weights):
    for name, value in {
        "other.pt": weights,
        "headless.pt": {key: tensor for key, tensor in weights.items() if not key.startswith("fc.")},
    }.items():
        torch.manual_seed(3)
        fresh = build("resnet18", num_classes=9, heads="none").state_dict()
        torch.manual_seed(3)
        state = build("resnet18", num_classes=9, heads="none", pretrained=saved(tmp_path, value, name)).state_dict()
        for key in state:
            assert torch.equal(state[key], fresh[key] if key.startswith("fc.") else weights[key])


def test_old_files_lack_batch_counts(tmp_path, weights):
    old = {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
    build("resnet18", num_classes=5, heads="none", pretrained=saved(tmp_path, old))


def test_the_heads_do_not_depend_on_pretrained(tmp_path, weights):
    torch.manual_seed(4)
    without = build("resnet18", num_classes=5, heads="light").heads.state_dict()
    torch.manual_seed(4)
    path = saved(tmp_path, weights)
    loaded = build("resnet18", num_classes=5, heads="light", pretrained=path).heads.state_dict()
    assert all(torch.equal(loaded[key], without[key]) for key in without)


def test_missing_and_unexpected_keys_are_named(tmp_path, weights):
    weights = dict(weights)
    weights["layer9.odd"] = weights.pop("layer2.0.conv1.weight")
    message = refused(pretrained=saved(tmp_path, weights))
    assert "1 missing (layer2.0.conv1.weight)" in message
    assert "1 unexpected (layer9.odd)" in message


def test_another_backbone_is_refused(tmp_path, weights):
    assert "not the weights of a resnet50" in refused(name="resnet50", pretrained=saved(tmp_path, weights))
    state = build("resnet18", num_classes=5, heads="none").state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(64, 64, 1, 1)
    assert "of another shape (layer1.0.conv1.weight)" in refused(pretrained=saved(tmp_path, state, "b.pt"))


def test_a_large_stem_does_not_fit_a_small_one(tmp_path, weights):
    message = refused(stem="small", pretrained=saved(tmp_path, weights))
    assert "7x7 stem" in message
    assert 'stem = "imagenet"' in message
    # A file with the small stem does fit it.
    small = build("resnet18", num_classes=5, heads="none", stem="small").state_dict()
    build("resnet18", num_classes=5, heads="none", stem="small", pretrained=saved(tmp_path, small, "small.pt"))


def test_files_that_cannot_be_read(tmp_path, weights):
    whole = tmp_path / "start.pt"
    torch.save(weights, whole)
    torn = tmp_path / "torn.pt"
    torn.write_bytes(whole.read_bytes()[:5000])
    empty = tmp_path / "empty.pt"
    empty.touch()
    text = tmp_path / "text.safetensors"
    text.write_text("not tensors")
    objects = tmp_path / "objects.pt"
    torch.save(torch.nn.Linear(2, 2), objects)
    for path in (torn, empty, text, objects):
        message = refused(pretrained=str(path))
        assert path.name in message
        assert "cannot be read" in message


def test_files_without_a_state_dict(tmp_path):
    assert "no state_dict" in refused(pretrained=saved(tmp_path, [1, 2]))
    assert "no state_dict" in refused(pretrained=saved(tmp_path, collections.OrderedDict()))
    assert "'epoch' is not a tensor" in refused(pretrained=saved(tmp_path, {"epoch": 1}))


def test_unknown_sources(tmp_path):
    assert 'did you mean "IMAGENET1K_V1"?' in refused(pretrained="IMAGENET1K_V3")
    assert "neither a file" in refused(pretrained=str(tmp_path / "nowhere.pt"))
    assert "there are none" in refused(name="resnet20", pretrained="DEFAULT")


def test_a_failed_download_says_how_to_use_a_file():
    message = refused(pretrained="DEFAULT")
    assert "Name or service not known" in message
    assert "https://download.pytorch.org/models/resnet18" in message
    assert "set pretrained to that file" in message


def test_torchvision_weights_by_name(monkeypatch):
    torch.manual_seed(12)
    theirs = torchvision.models.resnet18().state_dict()
    asked = []

    def deliver(url, **keywords):
        asked.append((url, keywords["weights_only"], keywords["check_hash"]))
        return theirs

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", deliver)
    state = build("resnet18", num_classes=1000, heads="none", pretrained="IMAGENET1K_V1").state_dict()
    assert all(torch.equal(state[key], theirs[key]) for key in theirs)
    assert asked == [(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url, True, True)]
