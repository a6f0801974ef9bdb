-- For wrk: so many of a hundred requests are writes, the others read the first page of the list
local writes, number = 0, 0

function init(arguments)
  writes = tonumber(arguments[1])
end

function request()
  number = number + 1
  if number * 37 % 100 >= writes then
    return wrk.format("GET", "/api/items?limit=20")
  end
  local body = string.format('{"name": "item %d", "price": "12.50", "quantity": 3}', number)
  return wrk.format("POST", "/api/items", { ["Content-Type"] = "application/json" }, body)
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    "requests %d in %.1f s; p50 %.1f ms, p95 %.1f ms, p99 %.1f ms, max %.1f ms; statuses of 400 and above %d, time-outs %d, broken connections %d\n",
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(95) / 1e3,
    latency:percentile(99) / 1e3, latency.max / 1e3, errors.status, errors.timeout,
    errors.connect + errors.read + errors.write))
end
