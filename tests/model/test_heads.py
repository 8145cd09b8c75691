import pytest
import torch

from pipeline.model.backbone import build
from pipeline.model.heads import AuxiliaryHead, head_widths


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("name", "channels", "out"),
    [("resnet18", (64, 128, 256), 512), ("resnet50", (256, 512, 1024), 2048), ("resnet20", (16, 32, 64), 64)],
)
def test_bottleneck_heads_have_the_released_shape(name, channels, out):
    heads = build(name, num_classes=5, heads="bottleneck").heads
    assert len(heads) == 3
    for head, c_in, k in zip(heads, channels, (8, 4, 2), strict=True):
        assert head.reduce.weight.shape == (out // 4, c_in, 1, 1)
        assert head.pool.weight.shape == (out // 4, out // 4, k, k)
        assert head.pool.stride == (k, k)
        assert head.expand.weight.shape == (out, out // 4, 1, 1)
        assert head.fc.weight.shape == (5, out)
        assert head.reduce.bias is head.pool.bias is head.expand.bias is None


def test_widths_of_the_light_heads():
    assert head_widths("light", 64, 2048) == (48, 384)
    assert head_widths("light", 64, 512) == (48, 384)
    assert head_widths("light", 16, 64) == (12, 64)


def test_a_head_computes_what_it_says():
    torch.manual_seed(0)
    head = AuxiliaryHead(channels=3, middle=4, out=6, kernel=2, num_classes=5)
    x = torch.randn(2, 3, 4, 4)
    for _ in range(3):
        head(torch.randn(8, 3, 4, 4))  # moves the running statistics away from 0 and 1
    head.eval()

    def norm(value, layer):
        scale = layer.weight / (layer.running_var + layer.eps).sqrt()
        return (value - layer.running_mean[:, None, None]) * scale[:, None, None] + layer.bias[:, None, None]

    a = norm(torch.einsum("bchw,mc->bmhw", x, head.reduce.weight[:, :, 0, 0]), head.reduce_norm).clamp(min=0)
    windows = a.reshape(2, 4, 2, 2, 2, 2)
    b = norm(torch.einsum("bmiujv,nmuv->bnij", windows, head.pool.weight), head.pool_norm).clamp(min=0)
    c = norm(torch.einsum("bmhw,om->bohw", b, head.expand.weight[:, :, 0, 0]), head.expand_norm).clamp(min=0)
    wanted = c.mean(dim=(2, 3)) @ head.fc.weight.T + head.fc.bias
    torch.testing.assert_close(head(x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(3, 3), (1, 5), (2, 11), (16, 1)])
def test_a_map_smaller_than_the_kernel_is_padded_around_its_centre(rows, columns):
    torch.manual_seed(0)
    head = AuxiliaryHead(channels=3, middle=4, out=6, kernel=8, num_classes=5).eval()
    x = torch.randn(2, 3, rows, columns)
    seen = []
    head.pool.register_forward_hook(lambda _m, inputs, out: seen.append((inputs[0], out)))
    assert head(x).shape == (2, 5)
    padded, pooled = seen[0]
    assert padded.shape[2:] == (max(8, rows), max(8, columns))
    assert pooled.shape[2:] == (max(1, rows // 8), max(1, columns // 8))
    top, left = max(0, 8 - rows) // 2, max(0, 8 - columns) // 2
    inner = torch.relu(head.reduce_norm(head.reduce(x)))
    assert torch.equal(padded[:, :, top : top + rows, left : left + columns], inner)
    assert padded.count_nonzero() == inner.count_nonzero()


@pytest.mark.parametrize("size", [8, 16, 20, 33])
@pytest.mark.parametrize("heads", ["light", "bottleneck"])
def test_small_and_odd_images_train(size, heads):
    main, aux = build("resnet20", num_classes=3, heads=heads)(torch.randn(2, 3, size, size))
    assert main.shape == (2, 3)
    assert [logits.shape for logits in aux] == [(2, 3)] * 3
    assert all(logits.isfinite().all() for logits in aux)
