"The site that make docs builds: links, pictures, the search, phones and the dark theme"
import re, pytest
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

SITE = Path(__file__).parent.parent/'build'/'site'
built = pytest.mark.skipif(not (SITE/'index.html').exists(), reason='make docs was not run')
CHROMIUM = Path('/usr/bin/chromium')
ARGS = ['--no-sandbox','--disable-gpu','--disable-quic','--no-first-run','--disable-sync',
        '--disable-background-networking','--disable-component-update']
pytestmark = built

class Page(HTMLParser):
    "The links, pictures and anchors of a page"
    def __init__(self, path):
        super().__init__()
        self.links,self.pictures,self.ids = [],[],set()
        self.feed(path.read_text())
    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if 'id' in attrs: self.ids.add(attrs['id'])
        if tag=='a' and attrs.get('href'): self.links.append(attrs['href'])
        if tag=='img': self.pictures.append(attrs['src'])

@pytest.fixture(scope='module')
def pages(): return {p: Page(p) for p in SITE.rglob('*.html')}

def is_outside(link): return re.match('[a-z]+:', link)

def test_every_internal_link_leads_somewhere(pages):
    n = 0
    for path,page in pages.items():
        for link in page.links:
            if is_outside(link): continue
            file,_,anchor = unquote(link).partition('#')
            target = (path.parent/file).resolve() if file else path
            assert target.exists(), f'{path.name}: {link}'
            if anchor and target in pages: assert anchor in pages[target].ids, f'{path.name}: {link}'
            n += 1
    assert n>1000

def test_every_picture_is_there(pages):
    inner = [(p,src) for p,page in pages.items() for src in page.pictures if not is_outside(src)]
    for path,src in inner: assert (path.parent/unquote(src)).exists(), f'{path.name}: {src}'
    assert len(inner)>80

def test_each_public_name_has_an_entry():
    from importlib import import_module
    for path in (SITE/'api').glob('*.html'):
        module = import_module(f'miniai.{path.stem}')
        ids = {i.lower() for i in Page(path).ids}
        for nm in module.__all__: assert nm.lower().replace('_', '-') in ids, f'{path.stem}: {nm}'

@pytest.fixture(scope='module')
def browser():
    if not CHROMIUM.exists(): pytest.skip('Chromium is not installed')
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=str(CHROMIUM), args=ARGS)
        yield b
        b.close()

def opened(browser, name, width=1300, scheme='light'):
    page = browser.new_page(viewport={'width': width, 'height': 900}, color_scheme=scheme)
    page.route(re.compile('^https?:'), lambda route: route.abort())
    file,_,query = name.partition('?')
    page.goto(f'{(SITE/file).as_uri()}?{query}')
    return page

@pytest.mark.parametrize('name', ['index','09_learner','14_augment','18_challenge','results','api/learner'])
def test_a_phone_scrolls_tables_and_not_the_page(browser, name):
    page = opened(browser, f'{name}.html', width=390)
    assert page.evaluate('document.documentElement.scrollWidth')<=390
    page.close()

@pytest.mark.parametrize('width', [390, 800, 1050, 1330, 1700])
def test_nothing_is_cut_off(browser, width):
    "The text and, where it's shown, the list of headings end inside the window"
    page = opened(browser, '14_augment.html', width=width)
    right = "document.querySelector('%s').getBoundingClientRect().right"
    assert page.evaluate(right % 'article')<=width
    end = page.evaluate(right % '.toc-drawer')
    assert end<=width or end-240>=width-1  # it waits behind the edge
    page.close()

def test_tables_in_outputs_are_tables():
    for path in SITE.glob('*.html'): assert '<p>|' not in path.read_text(), path.name

def test_folded_answers_fold(browser):
    page = opened(browser, '13_resnet.html')
    fold = page.locator('details').first
    answer = fold.locator('p').first
    assert not answer.is_visible()
    fold.locator('summary').click()
    assert answer.is_visible()
    page.close()

def test_dark_and_light_differ(browser):
    def background(scheme):
        page = opened(browser, '09_learner.html', scheme=scheme)
        color = page.evaluate('getComputedStyle(document.body).backgroundColor')
        page.close()
        return color
    assert background('light')!=background('dark')

def test_the_search_finds_lr_find(browser):
    page = opened(browser, 'search.html?q=lr_find')
    page.wait_for_selector('ul.search li a', timeout=20_000)
    found = page.locator('ul.search').inner_text()
    assert 'Learner' in found
    page.close()
