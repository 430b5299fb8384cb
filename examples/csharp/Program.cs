// Trades, bars and order updates with Alpaca.Markets 7, the SDK for .NET.
//
// Install: dotnet new console && dotnet add package Alpaca.Markets --version 7.2.0, then put this file in place of
//          Program.cs
// Run:     dotnet run
// Change:  the three constants, or the variables of the environment of those names. The defaults are those of
//          `python3 alpaca-proxy.pyz demo`.
//
// Each stream takes the whole URL, path included. REST calls go to Alpaca, with Alpaca's own key.

using System;
using System.Threading;
using System.Threading.Tasks;
using Alpaca.Markets;
using Alpaca.Markets.Extensions;

var url = Environment.GetEnvironmentVariable("ALPACA_PROXY_URL") ?? "ws://127.0.0.1:8765";
var key = Environment.GetEnvironmentVariable("ALPACA_PROXY_KEY") ?? "momentum";
var secret = Environment.GetEnvironmentVariable("ALPACA_PROXY_SECRET") ?? "momentum";
var client = new SecretKey(key, secret);

using var stocks = new AlpacaDataStreamingClientConfiguration
{
    ApiEndpoint = new Uri(url + "/v2/iex"),
    SecurityId = client,
}.GetClient();
stocks.OnError += error => Console.Error.WriteLine(error.Message);
await stocks.ConnectAndAuthenticateAsync();

foreach (var symbol in new[] { "AAPL", "MSFT" })
{
    var trades = stocks.GetTradeSubscription(symbol);
    trades.Received += trade => Console.WriteLine($"trade {trade.Symbol} {trade.Price}");
    await stocks.SubscribeAsync(trades);
}

var bars = stocks.GetMinuteBarSubscription();
bars.Received += bar => Console.WriteLine($"bar {bar.Symbol} {bar.Close}");
await stocks.SubscribeAsync(bars);

using var orders = new AlpacaStreamingClientConfiguration
{
    ApiEndpoint = new Uri(url + "/stream"),
    SecurityId = client,
}.GetClient();
orders.OnError += error => Console.Error.WriteLine(error.Message);
orders.OnTradeUpdate += update => Console.WriteLine($"order {update.Event} {update.Order.ClientOrderId}");
await orders.ConnectAndAuthenticateAsync();

await Task.Delay(Timeout.Infinite);
