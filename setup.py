"""Packs the weights into the package and the README for a package index; everything else is in setup.cfg.

A mapping of folders to packages in setup.cfg would do so too, but then an editable install hooks into Python's imports,
behind the look at folders: wherever a folder is named alnumpy, as in the one above a clone, that empty one is imported.
"""

import configparser
import os
import re
import shutil
from glob import glob

from setuptools import Command, setup
from setuptools.command.build import build


class BuildWeights(Command):
    """Copies ``weights/`` to ``alnumpy/pretrained/``; the methods are setuptools' protocol for a step of a build."""

    editable_mode = False

    def initialize_options(self):
        self.build_lib = None

    def finalize_options(self):
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def get_source_files(self):
        return sorted(glob("weights/*.h5") + glob("weights/*.md"))

    def get_output_mapping(self):
        folder = os.path.join(self.build_lib, "alnumpy", "pretrained")
        return {os.path.join(folder, os.path.basename(source)): source for source in self.get_source_files()}

    def get_outputs(self):
        return list(self.get_output_mapping())

    def run(self):
        for target, source in {} if self.editable_mode else self.get_output_mapping().items():
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copyfile(source, target)


def long_description():
    """README.md for a page that no file lies beside: links lead to ``Source`` of project_urls, or are plain words."""
    config = configparser.RawConfigParser()
    config.read("setup.cfg", encoding="utf-8")
    source = re.search(r"^Source = (\S+?)/?$", config["metadata"]["project_urls"], re.MULTILINE)
    link = re.compile(r"(!?)\[([^]]*)\]\((?!https?:|#)([^)]*)\)")

    def absolute(match):
        picture, words, path = match.groups()
        if source:
            return f"{picture}[{words}]({source[1]}/{'raw' if picture else 'blob'}/HEAD/{path})"
        return "" if picture else words

    with open("README.md", encoding="utf-8") as file:
        return link.sub(absolute, file.read())


build.sub_commands.append(("build_weights", None))
setup(cmdclass={"build_weights": BuildWeights}, long_description=long_description())
