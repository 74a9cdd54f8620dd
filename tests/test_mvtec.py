from datasets import mvtec


def test_classes_and_counts_are_those_of_the_paper():
    assert " ".join(mvtec.CLASS_NAMES) == (
        "bottle cable capsule carpet grid hazelnut leather metal_nut pill screw tile toothbrush "
        "transistor wood zipper"
    )
    assert (len(mvtec.OBJECTS), len(mvtec.TEXTURES)) == (10, 5)
    assert set(mvtec.OBJECTS + mvtec.TEXTURES) == set(mvtec.CLASS_NAMES)
    totals = [sum(column) for column in zip(*mvtec.COUNTS.values(), strict=True)]
    assert totals == [3629, 467, 1258]
