"Memory that is kept is not fetched again"
import os, platform, subprocess, sys, pytest
from miniai.core import keep_freed_memory

code = '''
import resource, torch
from miniai.core import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10): torch.ones(12_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt-before
faults()
print(faults(), keep_freed_memory(), faults(), faults())'''

@pytest.mark.skipif(platform.libc_ver()[0]!='glibc', reason='an allocator of glibc')
def test_freed_memory_stays():
    "In a process of its own, as it cannot be undone; huge pages, where the kernel uses them, make few faults of many"
    env = {k: v for k,v in os.environ.items() if not k.startswith(('MALLOC_','GLIBC_'))}
    first,kept,_,after = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True).stdout.split()
    assert kept=='True' and int(first)>=10 and int(after)<=int(first)/10

@pytest.mark.parametrize('system', ['darwin','win32'])
def test_elsewhere_nothing_happens(monkeypatch, system):
    monkeypatch.setattr(sys, 'platform', system)
    assert keep_freed_memory() is False

def test_a_c_library_without_the_switch(monkeypatch):
    monkeypatch.setattr('ctypes.CDLL', lambda _: object())
    monkeypatch.setattr(sys, 'platform', 'linux')
    assert keep_freed_memory() is False
