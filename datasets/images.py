"""Pictures of one's own: folders `root/environment/class/picture.jpg`, as DomainBed has them, or a table of paths."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.datafiles.release import at_home
from invbench.datasets._picture_lists import from_folders, from_table
from invbench.datasets._pictures import LabelledPictures, PictureDataset
from invbench.errors import UserError


@register_dataset("images")
class Images(PictureDataset):
    """Your own pictures, in folders by environment and class, or in a table."""

    display_name: ClassVar[str] = "Images"
    provides: ClassVar[tuple[str, ...]] = ("image", "classification", "environments", "nuisance", "second_stage")
    advice: ClassVar[Mapping[str, str]] = {"nuisance": "'dataset.columns={attribute: COLUMN}'"}
    required_setting: ClassVar[str] = "dataset.root"

    root: str | None = setting(None, "folder of the pictures: root/environment/class/picture.jpg")
    table: str | None = setting(None, "csv, parquet or json file that lists them instead; paths are relative to root")
    columns: dict[str, str] = setting(
        {}, "names of the table's columns, where they are not path, label, environment, attribute, nuisance, split"
    )

    def capabilities(self) -> tuple[str, ...]:
        of_attribute = "attribute" in self.columns and self.tells_attribute
        return self.told({"nuisance": "nuisance" in self.columns or of_attribute})

    def files(self) -> tuple[Path, ...]:
        try:
            paths = self.labelled().pictures.paths
        except UserError:  # `load` says why
            return ()
        return (*paths, *([at_home(self.table)] if self.table is not None else []))

    def labelled(self) -> LabelledPictures:
        if self.root is None and self.table is None:
            raise UserError("say where the pictures are: --set dataset.root=FOLDER with FOLDER/environment/class/*.jpg")
        if self.table is None:
            return from_folders(at_home(self.root or ""))
        table = at_home(self.table)
        return from_table(table, table.parent if self.root is None else at_home(self.root), self.columns)
