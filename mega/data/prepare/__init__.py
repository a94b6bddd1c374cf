"""Raw data sets, as distributed -> the annotation files and pictures that training and evaluation read."""

from mega.data.prepare.bedlam import check_bedlam
from mega.data.prepare.emdb import prepare_emdb
from mega.data.prepare.threedpw import prepare_3dpw
from mega.data.prepare.videos import extract_pictures

__all__ = ["check_bedlam", "extract_pictures", "prepare_3dpw", "prepare_emdb"]
