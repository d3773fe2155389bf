"""The `qvm` states at their public interface, on a file instead of qubesd.

The file is JSON: qube -> klass, template, label, prefs, features, tags,
firewall. Source: qubes-mgmt-salt-dom0-qvm, _states/ext_state_qvm.py.
"""

import copy
import json
from pathlib import Path

__opts__: dict = {}


def __virtual__():  # noqa: N807  Salt looks for it
    return "qvm"


def _host():
    return Path(__opts__["fake_host"])


def _change(name, comment, edit):
    host = json.loads(_host().read_text())
    before = copy.deepcopy(host)
    problem = edit(host)
    if problem:
        return {
            "name": name,
            "changes": {},
            "result": False,
            "comment": problem,
        }
    changes = {} if host == before else {"qubes": comment}
    _host().write_text(json.dumps(host))
    return {
        "name": name,
        "changes": changes,
        "result": True,
        "comment": comment,
    }


def _pairs(items):
    return {key: value for item in items for key, value in item.items()}


def _prefs(qube, items):
    for key, value in items.items():
        if key == "provides_network":
            return "4.2 knows provides-network only"
        qube["prefs"][key.replace("-", "_")] = value
    return ""


def _features(qube, items):
    for item in items:
        for key in item.get("enable", ()):
            qube["features"][key] = "1"
        for key, value in _pairs(item.get("set", ())).items():
            qube["features"][key] = value


def _tags(qube, items):
    for item in items:
        qube["tags"] = sorted({*qube["tags"], *item.get("add", ())})


def clone(name, source, **_):
    def edit(host):
        if source not in host:
            return f"no {source}"
        host.setdefault(name, copy.deepcopy(host[source]))
        return ""

    return _change(name, f"cloned {source}", edit)


def exists(name, **_):
    return _change(name, "", lambda host: "" if name in host else "missing")


def vm(name, present=(), prefs=(), features=(), tags=(), **_):
    def edit(host):
        wanted = _pairs(present)
        if wanted["template"] not in host:
            return f"no {wanted['template']}"
        qube = host.setdefault(
            name,
            {
                "klass": "AppVM",
                "prefs": {},
                "features": {},
                "tags": [],
                "firewall": ["action=accept"],
            },
        )
        qube.update(template=wanted["template"], label=wanted["label"])
        _features(qube, features)
        _tags(qube, tags)
        return _prefs(qube, _pairs(prefs))

    return _change(name, "vm", edit)


def prefs(name, **values):
    words = {
        key: value for key, value in values.items() if not key.startswith("_")
    }
    return _change(
        name,
        "prefs",
        lambda host: _prefs(host[name], words) if name in host else "missing",
    )


def tags(name, add=(), **_):
    return _change(
        name,
        "tags",
        lambda host: _tags(host[name], [{"add": add}]),
    )


def firewall(name, **values):
    def edit(host):
        host[name]["firewall"] = values["set"]
        return ""

    return _change(name, "firewall", edit)
