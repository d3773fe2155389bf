class Rule:
    def __init__(self, rule):
        words, _, comment = rule.partition("comment=")
        self._words = dict(word.split("=", 1) for word in words.split())
        if comment:
            self._words["comment"] = comment
        if "action" not in self._words:
            raise ValueError("missing action=")

    @property
    def rule(self):
        # another order than the server's, as the real client has it
        order = (
            *("action", "proto", "dst4", "dst6", "dsthost", "dstports"),
            *("icmptype", "specialtarget", "expire", "comment"),
        )
        return " ".join(
            f"{key}={self._words[key]}" for key in order if key in self._words
        )


class Firewall:
    def __init__(self, vm):
        self.vm = vm
        self._rules = None

    def load_rules(self):
        text = self.vm.qubesd_call(None, "admin.vm.firewall.Get").decode()
        self._rules = [Rule(line) for line in text.splitlines()]

    @property
    def rules(self):
        if self._rules is None:
            self.load_rules()
        return self._rules

    def save_rules(self, rules):
        text = "".join(f"{rule.rule}\n" for rule in rules)
        self.vm.qubesd_call(
            None, "admin.vm.firewall.Set", payload=text.encode("ascii")
        )
