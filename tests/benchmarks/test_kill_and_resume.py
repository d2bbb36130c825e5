from benchmarks import kill_and_resume


def test_a_small_corpus_goes_through(tmp_path, capsys):
    arguments = ["--gigabytes", "0.02", "--shard-mb", "1", "--folder", str(tmp_path)]
    assert kill_and_resume.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "checksums agree" in shown
    assert "every file is equal" in shown
    assert list(tmp_path.iterdir()) == []
