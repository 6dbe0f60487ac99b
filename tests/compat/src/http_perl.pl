# serve FILE PORT | get URL TIMES AT_ONCE SHA256: a process for each connection at once.
use strict;
use warnings;
use Digest::SHA qw(sha256_hex);
use HTTP::Tiny;
use IO::Socket::IP;

my ($what, @rest) = @ARGV;
if ($what eq "serve") {
    my ($file, $port) = @rest;
    local $/;
    open my $in, "<:raw", $file or die $!;
    my $data = <$in>;
    $/ = "\r\n";
    $SIG{CHLD} = "IGNORE";
    $SIG{TERM} = sub { exit 0 };
    my $server = IO::Socket::IP->new(LocalPort => $port, Listen => 128, ReuseAddr => 1, V6Only => 0) or die $@;
    while (1) {
        my $client = $server->accept or next;
        if (fork) { close $client; next }
        $SIG{TERM} = "DEFAULT";
        while (defined(my $line = <$client>)) { last if $line eq "\r\n" }
        print $client "HTTP/1.1 200 OK\r\nContent-Length: ", length $data, "\r\nConnection: close\r\n\r\n", $data;
        close $client;
        exit 0;
    }
}
my ($url, $times, $at_once, $sha256) = @rest;
my @children;
for my $number (1 .. $at_once) {
    my $pid = fork;
    if ($pid) { push @children, $pid; next }
    for (1 .. $times / $at_once) {
        my $got = HTTP::Tiny->new(keep_alive => 0, timeout => 60)->get($url);
        die "$got->{status} $got->{reason} $got->{content}" unless $got->{success};
        die "another digest" unless sha256_hex($got->{content}) eq $sha256;
    }
    exit 0;
}
my $bad = 0;
for (@children) { waitpid $_, 0; $bad ||= $? }
exit($bad ? 1 : 0);
