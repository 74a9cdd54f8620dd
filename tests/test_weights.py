import hashlib

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from utils.weights import read_state_dict, select_tensors, tensors_sha256


@pytest.fixture
def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def test_tensors_are_float32_without_gradients_and_without_others(network):
    half = network[0].weight.detach().half().requires_grad_()
    whole = network.state_dict() | {"0.weight": half, "fc.weight": torch.zeros(3)}
    del whole["1.num_batches_tracked"]  # as in older files
    found = select_tensors(whole, network, "resnet18", "x")
    names = [k for k in network.state_dict() if k != "1.num_batches_tracked"]
    assert list(found) == names
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert not any(tensor.requires_grad for tensor in found.values())
    assert torch.equal(found["0.weight"], half.detach().float())


def test_missing_tensors_are_listed(network):
    message = (
        r"weights x\.pth do not fit resnet18: 0\.weight is missing, 1\.weight is missing, .*, "
        r"1\.running_var is missing and 2 more$"
    )
    with pytest.raises(ValueError, match=message):
        select_tensors({}, network, "resnet18", "weights x.pth")


# torch means to remove quantised tensors
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_tensor_that_is_not_plain_is_refused(network):
    zeros = torch.zeros(2)
    quantised = torch.quantize_per_tensor(zeros, 1, 0, torch.qint8)
    for tensor in (zeros.cfloat(), quantised, zeros.to_sparse(), zeros.to("meta")):
        with pytest.raises(ValueError, match=r"fit resnet18: 2\.bias is no plain tensor of real "):
            select_tensors(network.state_dict() | {"2.bias": tensor}, network, "resnet18", "x")


PLAIN = {"conv1.weight": torch.arange(3.0), "bn1.num_batches_tracked": torch.tensor(1)}
PARALLEL = {f"module.{name}": tensor for name, tensor in PLAIN.items()}
HALF = {name: tensor.half() if tensor.ndim else tensor for name, tensor in PLAIN.items()}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (PLAIN, ""),
        (PARALLEL, ": module. is taken off the names"),
        ({"epoch": 3, "state_dict": PLAIN}, ": its state_dict is taken"),
        ({"model": PARALLEL}, ": its model is taken, module. is taken off the names"),
        (HALF, ": torch.float16 becomes float32"),
        ({"module.conv1.weight": torch.arange(3.0), "fc": torch.zeros(1)}, ""),
    ],
)
def test_weights_as_people_have_them_are_read_and_said_in_a_line(tmp_path, capsys, content, line):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    found = read_state_dict(path)
    expected = content if "fc" in content else PLAIN
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name].float(), expected[name].float()) for name in found)
    assert capsys.readouterr().out == (f"weights {path}{line}\n" if line else "")


def test_safetensors_are_read_and_refused_if_damaged(tmp_path, capsys):
    path = tmp_path / "weights.safetensors"
    save_file(PARALLEL, path)
    assert read_state_dict(path).keys() == PLAIN.keys()
    assert "module." in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(
        ValueError, match=r"cannot read weights .*weights\.safetensors: damaged, or"
    ):
        read_state_dict(path)


def test_hash_of_tensors_is_of_their_names_and_values():
    tensors = {"a": torch.arange(4.0).view(2, 2).T, "b": torch.zeros(1)}
    values = torch.tensor([0.0, 2, 1, 3]).numpy().tobytes()
    expected = hashlib.sha256(b"a" + values + b"b" + bytes(4)).hexdigest()
    assert tensors_sha256(tensors) == expected
