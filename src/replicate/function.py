def replicate_v1(ct, key_files, max_age):
    import errno, fcntl, hashlib, hmac, json, os, socket, stat, tempfile, time
    from cryptography.fernet import Fernet, InvalidToken

    root, site = @ROOT@, @SITE@

    def say(code, **more):
        more.update(schema=1, ok=code == "WRITTEN", code=code)
        return json.dumps(more)

    def make(directory):
        if not os.path.isdir(directory):
            make(os.path.dirname(directory))
            try:
                os.mkdir(directory, 0o700)
            except FileExistsError:
                pass

    keys = []
    for path in key_files:
        try:
            with open(path, "rb") as file:
                if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                    return say("KEY_MODE", detail=path + " is open to others")
                keys.append(file.read(200).strip())
        except FileNotFoundError:
            continue
    if not keys:
        return say("NO_KEY", detail="none of the key files is there")
    sealed, envelope, made = ct.encode("ascii"), None, None
    for key in keys:
        try:
            box = Fernet(key)
        except ValueError:
            return say("NO_KEY", detail="a key file holds no Fernet key")
        try:
            envelope, made = json.loads(box.decrypt(sealed).decode("utf-8")), box.extract_timestamp(sealed)
            break
        except InvalidToken:
            continue
    if envelope is None:
        return say("DECRYPT", detail="no key here opens it, or it was changed on the way")
    if envelope.get("v") != 1 or envelope.get("iat") != made:
        return say("NO_ENVELOPE", detail="what is sealed is no envelope of version 1")
    now, allowed = int(time.time()), min(max_age, envelope["max_age"])
    if made > now + 60:
        return say("FUTURE", detail="it was sealed %d s in the future: clocks disagree" % (made - now))
    if now - made > allowed:
        return say("STALE", detail="it was sealed %d s ago, and may be %d s old" % (now - made, allowed))
    if envelope["to"] != site:
        return say("NOT_FOR_US", detail="it is for another site")
    path, seq, mode = envelope["path"], envelope["seq"], int(envelope["mode"], 8)
    name, parent, top = os.path.basename(path), os.path.realpath(os.path.dirname(path)), os.path.realpath(root)
    below = parent == top or parent.startswith(top.rstrip("/") + "/")
    if name in ("", ".", "..") or not below or mode & ~0o660:
        return say("PATH_NOT_ALLOWED", path=path, detail="it does not lie below " + root)
    data = envelope["token"].encode("utf-8")
    temporary = None
    try:
        make(parent)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        guard = os.open(os.path.join(parent, "." + name + ".seq"), flags, 0o600)
        try:
            fcntl.flock(guard, fcntl.LOCK_EX)
            text = os.pread(guard, 24, 0).decode("ascii", "replace").strip()
            have = int(text) if text.isdigit() else 0
            if have >= seq:
                return say("SUPERSEDED", path=path, have=have, detail="generation %d is there already" % have)
            if not text:
                os.pwrite(guard, b"0".ljust(24), 0)
                os.fsync(guard)
            handle, temporary = tempfile.mkstemp(prefix="." + name + ".", dir=parent)
            try:
                os.fchmod(handle, mode)
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(temporary, os.path.join(parent, name))
            except BaseException:
                os.unlink(temporary)
                raise
            directory = os.open(parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
            written = os.pwrite(guard, str(seq).encode("ascii"), 0)
            os.ftruncate(guard, written)
            os.fsync(guard)
        finally:
            os.close(guard)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return say("NO_SPACE", path=path, detail="no room for %d bytes" % len(data))
        raise
    mac = hmac.new(keys[0], data, hashlib.sha256).hexdigest()
    return say("WRITTEN", path=path, size=len(data), mac=mac, host=socket.gethostname())
