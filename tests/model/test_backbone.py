import pytest
import torch
import torchvision

from pipeline.model.backbone import BACKBONES, STEMS, build, least_image
from pipeline.model.cost import parameters
from shards.errors import InputError


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def trunk_state(net):
    return {key: value for key, value in net.state_dict().items() if not key.startswith("heads.")}


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_keys_are_torchvisions_and_so_is_the_forward(name):
    torch.manual_seed(0)
    net = build(name, num_classes=7, heads="none").eval()
    theirs = torchvision.models.get_model(name, weights=None, num_classes=7).eval()
    assert list(net.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        main, aux = net(x)
        assert torch.equal(main, theirs(x))
    assert aux == []


def test_heads_only_add_keys_under_heads():
    net = build("resnet18", num_classes=7, heads="light")
    theirs = torchvision.models.resnet18(num_classes=7)
    theirs.load_state_dict(trunk_state(net), strict=True)
    assert any(key.startswith("heads.") for key in net.state_dict())


@pytest.mark.parametrize(("name", "stem"), [("resnet18", "imagenet"), ("resnet18", "small"), ("resnet20", "small")])
def test_one_seed_gives_one_backbone_whatever_the_heads(name, stem):
    states = []
    for heads in ("none", "light", "bottleneck"):
        torch.manual_seed(5)
        states.append(trunk_state(build(name, num_classes=4, heads=heads, stem=stem)))
    for other in states[1:]:
        assert list(other) == list(states[0])
        assert all(torch.equal(other[key], states[0][key]) for key in other)
    torch.manual_seed(6)
    assert not torch.equal(build(name, num_classes=4, heads="none", stem=stem).conv1.weight, states[0]["conv1.weight"])


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("name", BACKBONES)
def test_the_least_image_leaves_the_last_stage_more_than_a_pixel(name, stem):
    net, seen = build(name, num_classes=2, heads="none", stem=stem).eval(), []
    last = net.layer3 if name == "resnet20" else net.layer4
    last.register_forward_pre_hook(lambda _, images: seen.append(images[0].shape[2:]))
    with torch.no_grad():
        for size in (least_image(name, stem) - 1, least_image(name, stem)):
            net(torch.zeros(1, 3, size, size))
    assert seen == [(1, 1), (2, 2)]


def test_the_main_logits_do_not_depend_on_the_heads():
    x = torch.randn(2, 3, 32, 32)
    mains = []
    for heads in ("none", "bottleneck"):
        torch.manual_seed(1)
        mains.append(build("resnet20", num_classes=4, heads=heads)(x)[0])
    assert torch.equal(*mains)


def test_shapes_of_the_small_stem():
    net = build("resnet18", num_classes=10, heads="light", stem="small")
    seen = {}
    for stage in ("layer1", "layer4"):
        getattr(net, stage).register_forward_hook(lambda _m, _i, out, stage=stage: seen.update({stage: out.shape}))
    main, aux = net(torch.randn(2, 3, 32, 32))
    assert seen == {"layer1": (2, 64, 32, 32), "layer4": (2, 512, 4, 4)}
    assert main.shape == (2, 10)
    assert [logits.shape for logits in aux] == [(2, 10)] * 3


def test_resnet20_is_that_of_the_paper():
    net = build("resnet20", num_classes=10, heads="none")
    # By hand: 432 + 13,824 + 50,688 + 202,752 in convolutions, 1,376 in BatchNorm, 650 in the classifier.
    assert parameters(net) == 269_722
    assert sum(isinstance(m, torch.nn.Conv2d) for m in net.modules()) == 19
    seen = []
    for stage in (net.layer1, net.layer2, net.layer3):
        stage.register_forward_hook(lambda _m, _i, out: seen.append(tuple(out.shape[1:])))
    main, aux = net(torch.randn(2, 3, 32, 32))
    assert seen == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert main.shape == (2, 10)
    assert aux == []


def test_resnet20_shortcut_takes_every_second_pixel_and_adds_zero_channels():
    shortcut = build("resnet20", num_classes=2, heads="none").layer2[0].downsample
    x = torch.randn(2, 16, 5, 7)
    out = shortcut(x)
    assert out.shape == (2, 32, 3, 4)
    assert torch.equal(out[:, :16], x[:, :, ::2, ::2])
    assert not out[:, 16:].any()
    assert list(shortcut.parameters()) == []


def test_resnet10_is_half_a_resnet18_under_its_names():
    ours = build("resnet10", num_classes=7, heads="none").state_dict()
    theirs = torchvision.models.resnet18(num_classes=7).state_dict()
    second_blocks = {key for key in theirs if key.startswith("layer") and key.split(".")[1] == "1"}
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.items() if key not in second_blocks
    }
    # torchvision's own forward, with one block a stage.
    half = torchvision.models.resnet.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=7)
    half.load_state_dict(ours)
    net = build("resnet10", num_classes=7, heads="none")
    net.load_state_dict(ours)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(net.eval()(x)[0], half.eval()(x))


@pytest.mark.parametrize(("name", "stages"), [("resnet10", (12, 24, 48, 96)), ("resnet20", (12, 24, 48))])
def test_a_width_is_that_of_the_first_stage_and_the_others_follow(name, stages):
    net = build(name, num_classes=4, heads="light", stem="small", width=12)
    assert tuple(net.stage_widths) == stages
    main, aux = net(torch.randn(2, 3, 32, 32))
    assert main.shape == (2, 4)
    assert [logits.shape for logits in aux] == [(2, 4)] * 3


@pytest.mark.parametrize("name", BACKBONES)
def test_no_parameter_without_dimensions(name):
    # DeepSpeed fails on them.
    for parameter in build(name, num_classes=3, heads="bottleneck").parameters():
        assert parameter.dim() > 0
        assert parameter.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "resnet5"}, ['"resnet5"', 'did you mean "resnet50"?']),
        ({"name": "vit"}, ['"vit"', "resnet101"]),
        ({"stem": "smal"}, ['stem = "smal"', 'did you mean "small"?']),
        ({"heads": "heavy"}, ['heads = "heavy"', "light, bottleneck, none"]),
        ({"num_classes": 1}, ["num_classes = 1"]),
        ({"width": 32}, ["width = 32", "resnet18 has its own", "resnet10 or resnet20"]),
    ],
)
def test_wrong_values_are_named(arguments, words):
    with pytest.raises(InputError) as caught:
        build(**{"name": "resnet18", "num_classes": 3, **arguments})
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
