"Read the package's metadata from settings.ini, its one source."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
extras = [k for k in cfg if k.endswith('_requirements')]
url = cfg['git_url']  # empty until `make publish` sets it
links = {'Source': url, 'Issues': f'{url}/issues',
         'Changelog': f"{url}/blob/{cfg['branch']}/CHANGELOG.md"}

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=(here/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    keywords=cfg['keywords'],
    author=cfg['author'],
    license='Apache-2.0',
    license_files=['LICENSE'],
    project_urls=links if url else {},
    packages=[cfg['lib_path']],
    package_data={cfg['lib_path']: ['sample/*', 'board.jsonl', 'learner.pyi', 'py.typed']},
    include_package_data=False,
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg['requirements'].split(),
    extras_require={k.removesuffix('_requirements'): cfg[k].split() for k in extras},
    entry_points={'console_scripts': cfg['console_scripts'].split()},
    classifiers=['Programming Language :: Python :: 3',
                 'Programming Language :: Python :: 3 :: Only'],
    zip_safe=False)
