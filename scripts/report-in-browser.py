#!/usr/bin/env python3
"""Opens a report in a real browser and uses it: no request leaves it, its sliders and tables work, in both themes, on a
phone, and without scripts. Needs playwright (from PyPI) and Chromium.

    scripts/report-in-browser.py demo/report.html [FOLDER FOR SCREENSHOTS]
"""
import pathlib
import shutil
import sys

from playwright.sync_api import sync_playwright

report = pathlib.Path(sys.argv[1]).resolve()
pictures = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else None
chromium = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)


def check(condition, message):
    if not condition:
        sys.exit(f"error: {report}: {message}")


def open_page(browser, **context):
    page = browser.new_context(**context).new_page()
    requests, problems = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(report.as_uri())
    return page, requests, problems


def use_slider(page):
    slider = page.locator(".case input[type=range]").first
    case = page.locator(".case").first
    shown = lambda: case.locator("img:not([hidden])").get_attribute("alt")
    check(case.locator("img:not([hidden])").count() == 1, "one slice is shown at a time")
    before = shown()
    slider.focus()
    page.keyboard.press("Home")
    first, label = shown(), case.locator("output").inner_text()
    check(slider.get_attribute("aria-valuetext") == label and label in first, "the slider says which slice it is")
    page.keyboard.press("ArrowRight")
    check(shown() != first and before != first, "the slider moves through the slices")


def use_tables(page):
    tables = page.locator("table.sortable")
    check(tables.count() > 0, "there is a table to sort")
    for table in tables.all():
        for details in page.locator("details").all():
            details.evaluate("details => { details.open = true; }")
        for heading in table.locator("thead th").all():
            column = heading.evaluate("heading => heading.cellIndex")
            values = lambda: table.evaluate(
                "(table, column) => [...table.tBodies[0].rows].map(row => row.cells[column].dataset.value ?? null)", column)
            number = heading.get_attribute("data-kind") == "number"
            key = float if number else str
            for direction, reverse in (("ascending", False), ("descending", True)):
                heading.locator("button").click()
                check(heading.get_attribute("aria-sort") == direction, "a heading says how it sorts")
                known = [value for value in values() if value is not None]
                check(values()[:len(known)] == known, "rows without a value are last")
                if number:
                    check(known == sorted(known, key=key, reverse=reverse), f"column {column} is sorted {direction}")


with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
    for theme in ("light", "dark"):
        page, requests, problems = open_page(browser, color_scheme=theme, viewport={"width": 1280, "height": 900})
        check(page.title(), "it has a title")
        use_slider(page)
        use_tables(page)
        if pictures:
            page.reload()
            page.screenshot(path=pictures / f"report-{theme}.png", full_page=True)
        outside = [url for url in requests if not url.startswith("data:") and url != report.as_uri()]
        check(not outside, f"requests go out: {outside}")
        check(not problems, f"the browser complains: {problems}")
    page, _, _ = open_page(browser, viewport={"width": 390, "height": 844})
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    check(wide <= 0, f"{wide} pixels too wide for a phone")
    if pictures:
        page.screenshot(path=pictures / "report-phone.png", full_page=True)
    page, _, _ = open_page(browser, java_script_enabled=False)
    check(page.locator(".case img").count() == page.locator(".case img:visible").count(), "without scripts all slices show")
    browser.close()
print(f"{report}: no request, sliders and tables work")
