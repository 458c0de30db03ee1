"""Damaged and hostile files for every reader of what comes from outside: each is read, or is refused in plain words.

:mod:`.readers` says what is read, and by what; :mod:`.samples` are valid files, :mod:`.damage` changes them, and
:mod:`.structured` makes up files of known fields; :mod:`.engines` gives them to the readers, and counts.
"""
