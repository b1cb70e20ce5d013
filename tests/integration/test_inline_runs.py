def test_smoke(run):
    found = run()
    print(found.summary)
    print(found.clients.to_string())
    import subprocess

    print(subprocess.run(["find", found.folder], capture_output=True, text=True).stdout)
    assert 0
