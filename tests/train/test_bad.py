"""Images that do not decode, as the record knows them."""

from pipeline.data.batch import Bad
from pipeline.train.bad import BadImages
from pipeline.train.dist import World
from shards.manifest import Manifest


def test_a_cut_off_evaluation_keeps_no_bad_images(world: World, photos: Manifest) -> None:
    """Else the next attempt would take them for named in the record."""
    bad = BadImages(photos, 1.0)
    bad.add([Bad(3, "torn")])
    assert bad.state_dict() == []
    bad.agree()
    bad.add([Bad(4, "torn")])
    assert bad.state_dict() == [(3, "torn")]
