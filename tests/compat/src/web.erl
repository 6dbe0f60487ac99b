%% serve FILE PORT | get URL TIMES AT_ONCE SHA256 (inets) | serve-tcp FILE PORT | tcp HOST TIMES AT_ONCE SHA256 (gen_tcp)
-module(web).
-export([main/1]).

main(["serve", Dir, Port]) ->
    {ok, _} = application:ensure_all_started(inets),
    {ok, _} = inets:start(httpd, [{port, list_to_integer(Port)}, {server_name, "web"}, {server_root, Dir},
                                  {document_root, Dir}, {bind_address, any}]),
    receive after infinity -> ok end;
main(["serve-tcp", File, Port]) ->
    {ok, Data} = file:read_file(File),
    {ok, Listener} = gen_tcp:listen(list_to_integer(Port), [binary, {active, false}, {reuseaddr, true}, {backlog, 128}]),
    accept(Listener, Data);
main([What, Where, Times, AtOnce, Sha256]) ->
    {ok, _} = application:ensure_all_started(inets),
    N = list_to_integer(AtOnce),
    Each = list_to_integer(Times) div N,
    Want = list_to_binary(Sha256),
    Workers = [spawn_monitor(fun() -> [Want = digest(What, Where) || _ <- lists:seq(1, Each)] end) || _ <- lists:seq(1, N)],
    [receive {'DOWN', Monitor, process, Pid, normal} -> ok;
             {'DOWN', Monitor, process, Pid, Why} -> io:format(standard_error, "~p~n", [Why]), halt(1) end
     || {Pid, Monitor} <- Workers],
    halt(0).

accept(Listener, Data) ->
    {ok, Socket} = gen_tcp:accept(Listener),
    Pid = spawn(fun() -> receive go -> ok end, ok = gen_tcp:send(Socket, Data), gen_tcp:close(Socket) end),
    ok = gen_tcp:controlling_process(Socket, Pid),
    Pid ! go,
    accept(Listener, Data).

digest("get", Url) ->
    {ok, {{_, 200, _}, _, Body}} = httpc:request(get, {Url, [{"connection", "close"}]}, [], [{body_format, binary}]),
    hex(Body);
digest("tcp", Host) ->
    {ok, Socket} = gen_tcp:connect(Host, 7000, [binary, {active, true}]),
    hex(all(Socket, [])).

all(Socket, Parts) ->
    receive {tcp, Socket, Part} -> all(Socket, [Part | Parts]);
            {tcp_closed, Socket} -> iolist_to_binary(lists:reverse(Parts));
            {tcp_error, Socket, Why} -> exit(Why) end.

hex(Body) ->
    << <<(string:lowercase(integer_to_binary(Byte, 16)))/binary>> || <<Byte:4>> <= crypto:hash(sha256, Body) >>.
