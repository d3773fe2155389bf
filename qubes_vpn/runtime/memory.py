"""What one session leaves for the next: how we log in."""

from dataclasses import dataclass, field, replace

from qubes_vpn.config.profile import ClientProfile, Credentials
from qubes_vpn.engine.client import ClientEngine
from qubes_vpn.engine.effects import Ended


@dataclass(slots=True)
class Memory:
    """Secrets of a person, for as long as the engine's process lives.

    kept: credentials that were given, or answered. once: the answer to a
    challenge, good for one session. token: (user, auth-token). passphrase:
    of the private key.
    """

    kept: Credentials | None = field(default=None, repr=False)
    once: Credentials | None = field(default=None, repr=False)
    token: tuple[str, str] | None = field(default=None, repr=False)
    passphrase: bytes | None = field(default=None, repr=False)

    @property
    def credentials(self) -> Credentials | None:
        """What the next session logs in with; what is missing is asked."""
        return self.once or self.kept

    def learn(
        self, engine: ClientEngine, profile: ClientProfile, ended: Ended
    ) -> None:
        """Take what a session knew, as its end says.

        With auth-nocache nothing that was answered is kept.
        """
        self.token = None if ended.drop_token else engine.token
        if not profile.auth_nocache:
            self.passphrase = engine.passphrase
            if self.once is None and engine.credentials is not None:
                self.kept = engine.credentials
        if ended.drop_credentials:
            # the name is asked again, too: it may have been the wrong one
            self.kept = self.kept and replace(self.kept, password=None)
        self.once = ended.next_credentials
