"""Renders a template and its data as HTML and plain text."""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from css_inline import CSSInliner
from jinja2 import FileSystemLoader, StrictUndefined
from jinja2 import Template as JinjaTemplate
from jinja2.sandbox import SandboxedEnvironment
from markupsafe import Markup

from common.contracts.notifications import Template
from sender.template_data import TEMPLATES, TemplateData, read_data

DIRECTORY = Path(__file__).with_name("templates")


class Content(NamedTuple):
    """The visible parts of a mail."""

    subject: str
    html: str
    text: str


class _Parts(NamedTuple):
    subject: JinjaTemplate
    html: JinjaTemplate
    text: JinjaTemplate


class Renderer:
    """All templates, loaded and their styles moved into the elements once."""

    def __init__(self, *, brand: str) -> None:
        self._brand = brand
        # Sandboxed, although they are ours: an editor of templates need not be trusted with the
        # process.
        loader = FileSystemLoader(DIRECTORY)
        self._html = SandboxedEnvironment(loader=loader, autoescape=True, undefined=StrictUndefined)
        self._text = SandboxedEnvironment(
            loader=loader,
            autoescape=False,  # plain text; HTML comes from the other one
            undefined=StrictUndefined,
            keep_trailing_newline=True,
        )
        self._parts = {template: self._load(template) for template in Template}

    def render(self, template: Template, data: TemplateData) -> Content:
        """Fill in one template."""
        placeholders = {"brand": self._brand, **data.placeholders()}
        return Content(*(part.render(placeholders) for part in self._parts[template]))

    def _load(self, template: Template) -> _Parts:
        return _Parts(
            self._text.from_string(TEMPLATES[template].subject),
            self._html.from_string(self._inlined(template)),
            self._text.get_template(f"{template}.txt"),
        )

    def _inlined(self, template: Template) -> str:
        """Return the template with its layout, each style in the element that it applies to.

        Mail programs drop stylesheets. Inlining takes longer than all the rest of a mail, so
        it is done once: every placeholder is filled in with itself, ``{{ name }}``. Templates
        can therefore hold placeholders, but no conditions on them.
        """
        sample = read_data(template, TEMPLATES[template].sample)
        names = ("brand", *sample.placeholders())
        themselves = {name: Markup(f"{{{{ {name} }}}}") for name in names}  # noqa: S704 - ours
        page = self._html.get_template(f"{template}.html").render(themselves)
        return _inliner().inline(page)


@lru_cache(1)
def _inliner() -> CSSInliner:
    return CSSInliner(load_remote_stylesheets=False)
