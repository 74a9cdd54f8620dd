"""Batches of a dataset, decoded by worker processes while the network runs."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm


class _CarriedErrors:
    """A dataset that returns a bad item's error.

    A DataLoader worker turns an exception into the text of its traceback; as a value it arrives
    whole and can be raised where the user is told.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except (OSError, ValueError) as error:
            return error


def _collate(items: list) -> list[Tensor] | Exception:
    errors = [item for item in items if isinstance(item, Exception)]
    return errors[0] if errors else default_collate(items)


def load_batches(
    dataset: Any, batch_size: int, num_workers: int, description: str
) -> Iterator[list[Tensor]]:
    """Yield the dataset's items in order, collated into batches, under a progress bar.

    Args:
        dataset: has __len__ and __getitem__, as MVTecDataset.
        batch_size: items in a batch; the last one may be smaller.
        num_workers: processes that decode ahead; 0 decodes between the batches.
        description: what the progress bar says.

    Raises:
        OSError, ValueError: as the dataset raises them.
    """
    loader = DataLoader(
        _CarriedErrors(dataset), batch_size, num_workers=num_workers, collate_fn=_collate
    )
    for batch in tqdm(loader, desc=description, unit="batch", disable=None):
        if isinstance(batch, Exception):
            raise batch
        yield batch
