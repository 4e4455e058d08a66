"""The egress policy: public addresses by the registries' blocks, and the configured lists."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookline_service.targets.http.egress import (
    EgressPolicy,
    embedded_ipv4,
    is_public,
    parse_hosts,
    parse_nat64,
    parse_networks,
    parse_ports,
)

# Written out again, not imported: a block that vanished from the service must be missed here.
DENIED_IPV4 = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "192.175.48.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "168.63.129.16/32",
]
DENIED_IPV6 = [
    "::/128",
    "::1/128",
    "::/96",
    "::ffff:0:0/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "2001::/23",
    "2001:db8::/32",
    "2002::/16",
    "2620:4f:8000::/48",
    "3fff::/20",
    "4000::/3",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
]


@pytest.mark.parametrize("block", [*DENIED_IPV4, *DENIED_IPV6])
def test_addresses_of_special_blocks_are_not_public(block: str) -> None:
    network = ip_network(block)
    assert not is_public(network[0])
    assert not is_public(network[-1])
    assert not is_public(network[network.num_addresses // 2])


@pytest.mark.parametrize(
    "address",
    [
        "1.0.0.0",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.0.1.0",
        "192.0.3.0",
        "192.88.98.255",
        "192.88.100.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "198.51.99.255",
        "198.51.101.0",
        "203.0.112.255",
        "203.0.114.0",
        "223.255.255.255",
        "168.63.129.15",
        "168.63.129.17",
        "8.8.8.8",
        "2000::",
        "2001:200::",
        "2001:db7:ffff::1",
        "2001:db9::",
        "2003::",
        "2606:4700::1111",
        "2620:4f:7fff::",
        "2620:4f:8001::",
        "3ffe:ffff::",
        "3fff:1000::",
        "3fff:ffff::",
        "2606:4700::5efd:7f00:1",
        "2606:4700::400:5efe:7f00:1",
        "2606:4700:0:5efe::7f00:1",
    ],
)
def test_addresses_next_to_special_blocks_are_public(address: str) -> None:
    assert is_public(ip_address(address))


@given(st.ip_addresses(v=4))
def test_ipv6_addresses_that_embed_ipv4_are_not_public(address: IPv4Address) -> None:
    number = int(address)
    for prefix in ("::", "::ffff:0:0", "64:ff9b::", "::ffff:0:0:0"):
        assert not is_public(IPv6Address(int(IPv6Address(prefix)) | number))
    assert not is_public(IPv6Address(0x2002 << 112 | number << 80))
    assert not is_public(IPv6Address((0x2001 << 112) | (number ^ 0xFFFFFFFF)))
    for identifier in ("2606:4700::5efe:0:0", "2a00:1:2:3:200:5efe:0:0", "2606::300:5efe:0:0"):
        assert not is_public(IPv6Address(int(IPv6Address(identifier)) | number))


@given(st.ip_addresses(v=6))
def test_only_global_unicast_is_public(address: IPv6Address) -> None:
    if is_public(address):
        assert address in IPv6Network("2000::/3")
        assert address.ipv4_mapped is None
        assert address.sixtofour is None


class TestPolicy:
    POLICY = EgressPolicy(parse_networks(["10.1.0.0/16", "fd00::/8"]))

    @pytest.mark.parametrize("address", ["10.1.2.3", "fd00::1", "8.8.8.8", "2606:4700::1"])
    def test_allows_public_and_listed_addresses(self, address: str) -> None:
        assert self.POLICY.allows(address)

    @pytest.mark.parametrize(
        "address",
        [
            "10.2.0.1",
            "fe80::1",
            "fe80::1%eth0",
            "::ffff:10.1.2.3",
            "",
            "host",
            "10.1.2",
            "1.2.3.4/8",
        ],
    )
    def test_denies_other_addresses_and_text_that_is_no_address(self, address: str) -> None:
        assert not self.POLICY.allows(address)

    def test_name_is_denied_if_one_of_its_addresses_is(self) -> None:
        assert self.POLICY.allows_all(["8.8.8.8", "10.1.2.3"])
        assert not self.POLICY.allows_all(["8.8.8.8", "10.2.0.1"])

    @pytest.mark.parametrize("host", ["127.0.0.1", "::1", "10.2.0.1", "::ffff:7f00:1"])
    def test_check_host_rejects_a_denied_literal_address(self, host: str) -> None:
        problem = self.POLICY.check_host(host)
        assert problem is not None
        assert "neither a public address" in problem

    @pytest.mark.parametrize("host", ["8.8.8.8", "10.1.2.3", "2606:4700::1", "fd00::1"])
    def test_check_host_accepts_an_allowed_literal_address(self, host: str) -> None:
        assert self.POLICY.check_host(host) is None

    @pytest.mark.parametrize("host", ["localhost", "inside.test", "10.1.2.3.example"])
    def test_check_host_accepts_a_name_without_resolving_it(self, host: str) -> None:
        assert self.POLICY.check_host(host) is None

    @pytest.mark.parametrize("text", ["10.0.0.1/8", "host", "", "10.0.0.0/33"])
    def test_invalid_network_is_rejected(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"host bits|does not appear|netmask"):
            parse_networks([text])


class TestLists:
    """The configured lists override the check for public addresses."""

    @pytest.mark.parametrize(
        "address, is_allowed",
        [
            ("8.8.8.8", False),
            ("8.8.9.9", True),
            ("10.1.9.9", False),
            ("10.1.2.3", True),
            ("2606:4700::1", False),
            ("2606:4701::1", True),
        ],
    )
    def test_deny_list_overrides_the_allow_list_and_public_addresses(
        self, address: str, *, is_allowed: bool
    ) -> None:
        policy = EgressPolicy(
            allow=parse_networks(["10.1.0.0/16"]),
            deny=parse_networks(["8.8.8.0/24", "10.1.9.0/24", "2606:4700::/32"]),
        )
        assert policy.allows(address) is is_allowed

    def test_all_public_addresses_can_be_denied(self) -> None:
        policy = EgressPolicy(parse_networks(["10.1.0.0/16"]), is_public_allowed=False)
        assert policy.allows("10.1.2.3")
        assert not policy.allows("8.8.8.8")
        assert not policy.allows("2606:4700::1")

    @pytest.mark.parametrize(
        "network, reached, hidden",
        [
            ("64:ff9b::/96", "64:ff9b::8.8.8.8", "64:ff9b::10.0.0.1"),
            ("::ffff:0:0/96", "::ffff:8.8.8.8", "::ffff:169.254.169.254"),
            ("::/96", "::8.8.8.8", "::127.0.0.1"),
            ("2002::/16", "2002:808:808::1", "2002:7f00:1::1"),
            ("2001::/32", "2001:0:808:808:0:0:f7f7:f7f7", "2001:0:808:808:0:0:80ff:fffe"),
            ("2606:4700::/32", "2606:4700::5efe:808:808", "2606:4700::5efe:7f00:1"),
            ("2606:4700::/32", "2606:4700::200:5efe:808:808", "2606:4700::200:5efe:7f00:1"),
            ("::ffff:0:0:0/96", "::ffff:0:808:808", "::ffff:0:7f00:1"),
        ],
        ids=[
            "NAT64",
            "mapped",
            "compatible",
            "6to4",
            "Teredo",
            "ISATAP",
            "ISATAP, universal",
            "translated",
        ],
    )
    def test_embedded_ipv4_address_is_checked_in_an_allowed_ipv6_network(
        self, network: str, reached: str, hidden: str
    ) -> None:
        policy = EgressPolicy(parse_networks([network]))
        assert policy.allows(reached)
        assert not policy.allows(hidden)
        denying = EgressPolicy(policy.allow, deny=parse_networks(["8.8.8.8/32"]))
        assert not denying.allows(reached)

    @pytest.mark.parametrize(
        "prefix, reached, hidden",
        [
            ("2001:db8::/32", "2001:db8:808:808::", "2001:db8:7f00:1::"),
            ("2001:db8:100::/40", "2001:db8:108:808:8::", "2001:db8:17f:0:1::"),
            ("2001:db8:122::/48", "2001:db8:122:808:8:800::", "2001:db8:122:7f00:0:100::"),
            ("2001:db8:122:300::/56", "2001:db8:122:308:8:808::", "2001:db8:122:37f:0:1::"),
            (
                "2001:db8:122:344::/64",
                "2001:db8:122:344:8:808:800::",
                "2001:db8:122:344:7f:0:100::",
            ),
            ("2001:db8:122:344::/96", "2001:db8:122:344::808:808", "2001:db8:122:344::7f00:1"),
        ],
    )
    def test_ipv4_address_behind_a_configured_nat64_prefix_is_checked(
        self, prefix: str, reached: str, hidden: str
    ) -> None:
        """The formats of RFC 6052 section 2.2; the prefix may also be public."""
        blind = EgressPolicy(parse_networks([prefix]))
        assert blind.allows(hidden)
        policy = EgressPolicy(parse_networks([prefix]), nat64=parse_nat64([prefix]))
        assert policy.allows(reached)
        assert not policy.allows(hidden)

    @pytest.mark.parametrize("text", ["2001:db8::/33", "2001:db8::/128", "10.0.0.0/8", ""])
    def test_nat64_prefix_of_another_length_than_the_six_is_rejected(self, text: str) -> None:
        with pytest.raises(
            ValueError,
            match=r"no length|At least 3 parts|Address cannot be empty|Expected 4|4 octets|empty",
        ):
            parse_nat64([text])

    @pytest.mark.parametrize("address", ["::", "::1", "fd00::1", "2606:4700::1", "64:ff9b:1::1"])
    def test_other_ipv6_addresses_embed_no_ipv4_address(self, address: str) -> None:
        assert embedded_ipv4(IPv6Address(address)) is None

    @pytest.mark.parametrize(
        "host, is_allowed",
        [
            ("hooks.example", True),
            ("a.partner.example", True),
            ("a.b.partner.example", True),
            ("partner.example", False),
            ("xpartner.example", False),
            ("bad.partner.example", False),
            ("deep.down.partner.example", False),
            ("192.0.2.1", False),
            ("8.8.8.8", True),
            ("2606:4700::1", True),
            ("example", False),
        ],
    )
    def test_host_lists_match_the_host_of_the_url(self, host: str, *, is_allowed: bool) -> None:
        policy = EgressPolicy(
            allow_hosts=parse_hosts(
                ["Hooks.example", "*.partner.example", "8.8.8.8", "[2606:4700:0::1]"]
            ),
            deny_hosts=parse_hosts(["bad.partner.example", "*.down.partner.example"]),
        )
        assert policy.allows_host(host) is is_allowed
        assert (policy.check_host(host) is None) is is_allowed

    def test_every_host_is_allowed_without_an_allow_list(self) -> None:
        assert EgressPolicy().allows_host("hooks.example")
        assert not EgressPolicy(deny_hosts=parse_hosts(["*.example"])).allows_host("a.example")

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "*",
            "*.",
            "*.*.example",
            "a.*",
            "http://a",
            "a:80",
            "a.",
            "*.0.0.1",
            "xn--a",
            "*.xn--a.example",
            "::1",
            "b\u00fc",
        ],
    )
    def test_invalid_host_list_is_rejected(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"must|longer|IDNA"):
            parse_hosts([text])


class TestPorts:
    @pytest.mark.parametrize("port", [80, 443, 1024, 8080, 8443, 32768, 65_535])
    def test_http_and_unprivileged_ports_are_allowed(self, port: int) -> None:
        assert EgressPolicy().allows_port(port)
        assert EgressPolicy().check_port(port) is None

    @pytest.mark.parametrize(
        "port",
        [
            *(1, 22, 25, 53, 110, 111, 143, 445, 465, 587, 993, 1023),
            *(1433, 1521, 2379, 2525, 3306, 5432, 6379, 9042, 9200, 11211, 27017, 27018, 27019),
        ],
    )
    def test_mail_database_and_system_ports_are_denied(self, port: int) -> None:
        assert not EgressPolicy().allows_port(port)
        problem = EgressPolicy().check_port(port)
        assert problem is not None
        assert f"port {port} " in problem
        assert "HOOKLINE_EGRESS_PORTS" in problem

    def test_denied_port_stays_denied_in_an_allowed_network(self) -> None:
        assert not EgressPolicy(parse_networks(["10.0.0.0/8"])).allows_port(5432)

    def test_settings_allow_and_deny_ports(self) -> None:
        policy = EgressPolicy(
            ports=parse_ports(["443", "25-26"]), deny_ports=parse_ports(["26", "9000-9001"])
        )
        assert [port for port in range(65_536) if policy.allows_port(port)] == [25, 443]

    @pytest.mark.parametrize(
        "text", ["", "0", "65536", "-1", "80-", "-80", "90-80", "http", "1-70000", " 80", "\u0663"]
    )
    def test_invalid_port_list_is_rejected(self, text: str) -> None:
        with pytest.raises(ValueError, match="port"):
            parse_ports([text])
