"""What a run must never do: trust code that changed under it, or destroy what a person made"""


def test_code_that_changes_under_a_stage_is_no_result(project):
    (project.folder/'helper.py').write_text('def f(): return 1\n')
    slow = 'import time\nfrom pathlib import Path\nPath("started").touch()\ntime.sleep(3)'
    project.stage('01_a', 'out: Out = "data/a.txt"', slow, 'from helper import f\nPath(out).write_text(str(f()))')
    p = project.start('run', project.pipeline, '--json')
    project.until((project.folder/'started').exists)
    (project.folder/'helper.py').write_text('def f(): return 2\n')
    done = project.wait(p)
    assert done.code == 1 and done.statuses == {'01_a': 'failed'}, done
    assert 'function helper.f changed while the stage was running' in project.cli('show').text
    (project.folder/'helper.py').write_text('def f(): return 1\n')
    assert project.ok().statuses == {'01_a': 'completed'}
    assert (project.data/'a.txt').read_text() == '1'


def test_an_out_is_no_weapon(project):
    for out in ('.', '..', '01_a.ipynb', '../../..', '../../../.mlops'):
        project.stage('01_a', f'out: Out = "{out}"', 'from pathlib import Path\nPath(out).mkdir()')
        done = project.run()
        assert done.code == 2 and (project.folder/'01_a.ipynb').is_file(), done


def test_what_a_person_made_is_set_aside(project):
    project.stage('01_a', 'out: Out = "data/model"', 'from pathlib import Path\nPath(out).mkdir()\n(Path(out)/"w").write_text("1")')
    thesis = project.root/'thesis'
    for folder in (thesis, project.data/'model'):
        folder.mkdir(parents=True)
        (folder/'final.txt').write_text('years of work')
    project.ok('-p', f'out={thesis}')
    assert [o.name for o in thesis.iterdir()] == ['w']
    project.ok()
    assert [o.name for o in (project.data/'model').iterdir()] == ['w']
    kept = sorted((project.state/'replaced').glob('*/final.txt'))
    assert [o.read_text() for o in kept] == ['years of work']*2
    project.stage('01_a', 'out: Out = "data/model"', 'from pathlib import Path\nPath(out).mkdir()\n(Path(out)/"w").write_text("2")')
    project.ok()
    assert len(list((project.state/'replaced').iterdir())) == 2, 'what a run has made is replaced, not kept'
